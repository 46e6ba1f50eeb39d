// The page of one model: inputs, outputs, activity, versions, configuration, and a form to try the model.

import { bytes, duration, fill, h, number, table } from "./dom.js";
import { json, may, mayChange, who } from "./api.js";
import { histogram, latencies, lines, stages, tile } from "./charts.js";
import * as live from "./live.js";
import { labels, progress, state } from "./models.js";
import { tryIt } from "./tryit.js";

const KINDS = { BYTES: "text or files", BOOL: "true or false" };

// Explains each origin of a configuration value.
const ORIGINS = {
  file: "written in the model's configuration file", override: "sent with the request that loaded the model",
  model: "read from the model's own file", server: "decided by the server, which measured the model", default: "neither given nor measured",
};

// The reason alone, without the protocol's wording for a version that is not ready.
function whyNot(error) {
  return error.message.replace(/^Request for unknown model: '.*?' (?:has no available versions: )?version (\S+) is not at ready state: /, "Version $1 does not serve: ");
}

export function inWords(spec, batched) {
  const kind = KINDS[spec.datatype] ?? (spec.datatype.startsWith("FP") || spec.datatype === "BF16" ? "numbers" : "whole numbers");
  const shape = batched ? spec.shape.slice(1) : spec.shape;
  if (!shape.length || (shape.length === 1 && shape[0] === 1)) return `one value: ${kind}`;
  const sizes = shape.map((size) => (size < 0 ? "any number" : size.toLocaleString("en")));
  return `${sizes.join(" × ")} ${sizes.length === 1 && shape[0] > 0 ? "values" : "of values"}: ${kind}`;
}

export function model(main, name, tab, query) {
  const base = `/v2/models/${encodeURIComponent(name)}`, here = `#/models/${encodeURIComponent(name)}`;
  const head = h("div", { class: "head" }, h("h1", {}, name)), body = h("div", {});
  const tabs = [["", "Overview", overview], ["try", "Try it", attempt], ["versions", "Versions", versionsTab], ["config", "Configuration", configuration]]
    .filter(([id]) => (id === "try" ? may("infer", name) && may("read", name) : id === "versions" ? may("read") : true));
  const open = tabs.find(([id]) => id === tab) ?? tabs[0];
  fill(main, head, h("nav", { class: "tabs", "aria-label": `About ${name}` }, tabs.map(([id, title]) =>
    h("a", { href: id ? `${here}/${id}` : here, "aria-current": id === open[0] ? "page" : null }, title))), body);
  let update = () => {}, close = () => {};
  const metadata = json(base);
  metadata.catch(() => {});   // each tab that needs it shows the error

  const fail = (error) => fill(body, h("p", { class: "error", role: "alert" }, whyNot(error)));

  function title() {
    const list = live.versions(name), shown = list.find((one) => one.now.default) ?? list.at(-1);
    if (shown) fill(head, h("h1", {}, name), state(shown.now), h("span", { class: "muted" }, `version ${shown.now.version}`), labels(shown.now).slice(1));
  }

  function overview() {
    const why = h("section", {}), signature = h("section", { class: "panel" }, h("h2", {}, "Signature")), tiles = h("div", { class: "grid" }), details = h("div", { class: "wide" });
    fill(body, why, may("read") ? h("section", {}, tiles) : null, signature, may("read") ? h("section", {}, details) : null);
    metadata.then((told) => {
      const batched = told.inputs.some((spec) => spec.shape[0] === -1) && (live.versions(name).at(-1)?.now.max_batch_size ?? 0) > 0;
      const rows = (specs) => specs.map((spec) => [h("code", {}, spec.name), inWords(spec, batched) + (spec.parameters?.optional ? ", optional" : ""),
        h("code", { class: "muted" }, `${spec.datatype} [${spec.shape.join(", ")}]`)]);
      fill(signature, h("h2", {}, "Signature"), h("h3", {}, "Takes"), table(["Input", "What", "Type"], rows(told.inputs), "Inputs"),
        h("h3", { style: { marginTop: "18px" } }, "Returns"), table(["Output", "What", "Type"], rows(told.outputs), "Outputs"),
        batched ? h("p", { class: "muted small", style: { marginTop: "14px" } }, "Requests may hold several items: the first dimension is the batch.") : null,
        h("p", { class: "small", style: { margin: "14px 0 0" } }, h("a", { href: `${base}/openapi.json` }, "OpenAPI document")));
    }, (error) => fill(signature, h("h2", {}, "Signature"), h("p", { class: "error" }, whyNot(error))));
    update = () => {
      const list = live.versions(name);
      if (!list.length) return;
      const now = live.current(list), points = live.history(list), two = live.recent(list);
      fill(tiles,
        tile("Requests", number(now.rate), "a second", `${number(list.reduce((sum, one) => sum + one.now.success, 0))} since the load`,
          lines([points.map((point) => point.rate)], { label: `Requests a second, now ${number(now.rate)}` })),
        tile("Latency", duration(now.p50), "median", Number.isFinite(now.p99) ? `p95 ${duration(now.p95)} · p99 ${duration(now.p99)}` : "no requests",
          lines([points.map((point) => point.p99), points.map((point) => point.p95), points.map((point) => point.p50)], { label: `Latency: median ${duration(now.p50)}, p99 ${duration(now.p99)}` })),
        tile("Queued", number(now.queued), "requests", "waiting", lines([points.map((point) => point.queued)], { label: `Queued requests, now ${now.queued}`, most: 4 })));
      const sizes = {};
      for (const one of list) for (const [size, count] of Object.entries(one.now.batches)) sizes[size] = (sizes[size] ?? 0) + count;
      const names = Object.keys(sizes).map(Number).sort((a, b) => a - b);
      fill(details,
        h("div", { class: "panel" }, h("h2", {}, "Where the time goes"), stages(two.ns, two.success)),
        h("div", { class: "panel" }, h("h2", {}, "How long requests take"), latencies(two.latency)),
        h("div", { class: "panel" }, h("h2", {}, "Batch sizes"), names.length
          ? histogram(names.map((size) => sizes[size]), names, `Runs by batch size: ${names.map((size) => `${size}: ${sizes[size]}`).join(", ")}`)
          : h("p", { class: "empty" }, "The model has not run yet.")));
      fill(why, list.filter((one) => one.now.reason && !one.now.ready && one.now.reason !== "unloaded").map((one) =>
          h("div", { class: "panel" }, h("h2", {}, `Why version ${one.now.version} does not serve`), h("p", { class: "error" }, one.now.reason))));
    };
  }

  function attempt() {
    fill(body, h("p", { class: "busy" }, "Reading the signature…"));
    Promise.all([metadata, json(`${base}/openapi.json`)]).then(([told, document_]) => { close = tryIt(body, name, told, document_, query) ?? close; }, fail);
  }

  function versionsTab() {
    const told = h("div", { role: "status" }), list = h("div", { class: "panel" }), changes = h("div", { class: "panel" });
    fill(body, told, h("section", {}, list), h("section", {}, changes));
    let busy = "";
    const act = async (what, path, options) => {
      busy = what; fill(told, h("p", { class: "busy" }, `${what}…`)); update();
      try { await json(path, { method: "POST", ...options }); fill(told, h("p", {}, `${what}: done.`)); } catch (error) { fill(told, h("p", { class: "error", role: "alert" }, error.message)); }
      busy = ""; drawn = ""; update(); history();
    };
    let drawn = "";
    update = () => {
      const entries = live.versions(name), change = mayChange(name);
      const seen = JSON.stringify([entries.map(({ now }) => [now.version, now.state, now.reason, now.labels, now.default, now.memory, now.progress]), busy]);
      if (seen === drawn) return;
      drawn = seen;
      const button = (text, what, path, options) => h("button", { class: "small", type: "button", disabled: Boolean(busy), onclick: () => act(what, path, options) }, text);
      const rows = entries.flatMap(({ now }) => {
        const at = `/v2/repository/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(now.version)}`;
        const actions = change ? h("div", { class: "row" },
          now.labels.includes("stable") ? null : button("Promote", `Promoting version ${now.version}`, `${base}/promote`, { body: { version: now.version } }),
          now.ready ? button("Unload", `Unloading version ${now.version}`, `${at}/unload`) : button("Load", `Loading version ${now.version}`, `${at}/load`)) : null;
        const row = h("tr", {}, h("td", {}, now.version, " ", labels(now)), h("td", {}, state(now), progress(now)), h("td", { class: "n" }, bytes(now.memory)),
          h("td", { class: "n" }, now.load_seconds ? `${number(now.load_seconds)} s` : "–"), change ? h("td", {}, actions) : null);
        return now.reason && !now.ready && now.reason !== "unloaded" ? [row, h("tr", { class: "fail" }, h("td", { colspan: change ? "5" : "4" }, h("p", { class: "error" }, now.reason)))] : [row];
      });
      fill(list, h("div", { class: "row", style: { justifyContent: "space-between" } }, h("h2", {}, "Versions"),
        change && entries.some(({ now }) => now.labels.includes("stable")) ? button("Roll back", "Rolling back", `${base}/rollback`, { body: {} }) : null),
      table(["Version", "State", "#Memory", "#Load", ...(change ? ["Change"] : [])], rows, "Versions"),
      !change && may("manage", name) ? h("p", { class: "muted small" }, who().reason) : null);
    };
    const history = () => json(`/v2/repository/history?limit=20&model=${encodeURIComponent(name)}`).then(({ changes: found }) =>
      fill(changes, h("h2", {}, "Changes"), found.length ? table(["When", "Who", "What", "Version"], found.map((one) => [
        new Date(one.time * 1000).toLocaleString("en-GB"), one.who, one.action + (one.label ? ` ${one.label}` : ""), one.before && one.before !== one.version ? `${one.before} → ${one.version || "none"}` : one.version]), "Changes")
        : h("p", { class: "empty" }, "Nothing has changed yet.")), (error) => fill(changes, h("h2", {}, "Changes"), h("p", { class: "muted" }, error.message)));
    history();
  }

  function configuration() {
    fill(body, h("p", { class: "busy" }, "Reading the configuration…"));
    json(`${base}/explain-config`).then((config) => {
      const { parameters = {}, input, output, ...rest } = config;
      const said = Object.entries(parameters).map(([key_, value]) => [key_, value.string_value ?? JSON.stringify(value)]);
      const reasons = said.filter(([key_]) => key_.startsWith("backline")), own = said.filter(([key_]) => !key_.startsWith("backline"));
      const plain = (value) => (typeof value === "object" && value !== null ? h("code", {}, JSON.stringify(value)) : String(value));
      const entries = Object.entries(rest).filter(([, value]) => value !== "" && !(Array.isArray(value) && !value.length));
      const list = (pairs) => h("dl", {}, pairs.flatMap(([key_, value]) => [h("dt", {}, key_.replace(/^backline[._-]/, "").replaceAll("_", " ")), h("dd", {}, plain(value))]));
      const values = h("section", { class: "panel" }, h("h2", {}, "Configuration"), list(entries), own.length ? [h("h3", { style: { marginTop: "16px" } }, "Parameters"), list(own)] : null);
      fill(body,
        reasons.length ? h("section", { class: "panel" }, h("h2", {}, "What the server decided, and why"), list(reasons)) : null,
        values, h("section", {}, h("p", { class: "small" }, h("a", { href: `${base}/config` }, "As JSON"))));
      originsOf(values);
    }, fail);
  }

  // Replaces the list of values with a table that says where each comes from.
  function originsOf(panel) {
    json(`${base}/config-origins`).then(({ values: all }) => {
      const values = all.filter((one) => one.origin !== "server" || !one.path.startsWith("parameters[backline."));   // those are shown above
      const rows = (shown) => table(["Field", "Value", "From"], shown.map((one) => [h("code", {}, one.path.replace(/\.string_value$/, "")), h("code", { class: "muted" }, typeof one.value === "string" ? one.value : JSON.stringify(one.value)),
        [h("span", { class: `tag${one.origin === "file" || one.origin === "override" ? " strong" : ""}`, title: ORIGINS[one.origin] }, one.origin), one.where ? h("span", { class: "muted small" }, one.where) : null]]), "Configuration");
      const set = values.filter((one) => one.origin !== "default"), rest = values.filter((one) => one.origin === "default");
      fill(panel, h("h2", {}, "Configuration"), rows(set), h("dl", { class: "small", style: { marginTop: "14px" } }, Object.entries(ORIGINS).filter(([origin]) => set.some((one) => one.origin === origin)).flatMap(([origin, text]) => [h("dt", {}, origin), h("dd", {}, text)])),
        rest.length ? h("details", { style: { marginTop: "16px" } }, h("summary", {}, `${rest.length} defaults`), rows(rest)) : null);
    }, () => {});   // keep the list without origins
  }

  open[2]();
  return { update: () => { title(); update(); }, close: () => close() };
}
