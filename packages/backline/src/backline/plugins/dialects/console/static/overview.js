import { bytes, duration, fill, h, number, refill, table } from "./dom.js";
import { may } from "./api.js";
import { lines, tile } from "./charts.js";
import * as live from "./live.js";
import { state, tryLink } from "./models.js";

export function overview(main) {
  const lede = h("p", { class: "lede" }), tiles = h("div", { class: "grid" });
  const failures = h("div", { class: "panel" }), busiest = h("div", { class: "panel" });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Overview")), lede, h("section", { "aria-label": "Numbers of the last two minutes" }, tiles),
    h("section", { class: "wide uneven" }, busiest, failures));

  function update() {
    const server = live.latest();
    if (!server) return;
    const list = live.versions(), now = live.current(), points = live.history(), cpu = live.cpu(), workers = server.workers;
    const latest = cpu.at(-1) ?? { own: 0, workers: 0 }, used = latest.own + latest.workers;
    const share = (cores) => Math.round((100 * cores) / server.cores), many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
    const serving = list.filter((model) => model.now.ready), broken = list.filter((model) => model.now.state === "UNAVAILABLE" && model.now.reason && model.now.reason !== "unloaded");
    fill(lede, h("b", {}, server.ready ? "Ready." : "Not ready."),
      ` ${serving.length} ${serving.length === 1 ? "version serves" : "versions serve"} `, h("b", {}, `${number(now.rate)} requests a second`),
      Number.isFinite(now.p99) ? [", 99 of 100 within ", h("b", {}, duration(now.p99))] : "", ".",
      broken.length ? [" ", h("a", { href: "#/models" }, `${broken.length} failed to load`), "."] : "");
    fill(tiles,
      tile("Requests", number(now.rate), "a second", `${number(now.items / (now.seconds || 1))} items a second`,
        lines([points.map((point) => point.rate)], { label: `Requests a second over two minutes, now ${number(now.rate)}` })),
      tile("Latency", duration(now.p50), "median", Number.isFinite(now.p99) ? `p95 ${duration(now.p95)} · p99 ${duration(now.p99)}` : "no requests",
        lines([points.map((point) => point.p99), points.map((point) => point.p95), points.map((point) => point.p50)],
          { label: `Latency over two minutes: median ${duration(now.p50)}, p95 ${duration(now.p95)}, p99 ${duration(now.p99)}` })),
      tile("Queued", number(now.queued), "requests", "waiting in all queues",
        lines([points.map((point) => point.queued)], { label: `Queued requests over two minutes, now ${now.queued}`, most: 4 })),
      tile("CPU", `${share(used)}`, "%", workers.count ? `of ${server.cores} cores: server ${share(latest.own)} %, ${many(workers.count, "worker")} ${share(latest.workers)} %` : `of ${server.cores} cores, server process`,
        lines([cpu.map((one) => (one.own + one.workers) / server.cores), ...(workers.count ? [cpu.map((one) => one.own / server.cores)] : [])],
          { label: `CPU over two minutes, now ${share(used)} percent${workers.count ? `, of which workers ${share(latest.workers)}` : ""}`, most: 1 })),
      tile("Memory", bytes(server.memory + workers.memory), "", workers.count ? `server ${bytes(server.memory)}, ${many(workers.count, "worker")} ${bytes(workers.memory)}` : "resident, server process",
        lines([live.readings().map((one) => one.memory + one.workers.memory)], { label: `Memory over two minutes, now ${bytes(server.memory + workers.memory)}`, most: (server.memory + workers.memory) * 1.3 })),
      server.gpus.map((gpu) => tile(server.gpus.length > 1 ? `GPU ${gpu.index}` : "GPU", `${Math.round(100 * gpu.busy)}`, "%", `${gpu.name}: ${bytes(gpu.used)} of ${bytes(gpu.total)}`,
        lines([live.readings().map((one) => one.gpus[gpu.index]?.busy ?? NaN), live.readings().map((one) => (one.gpus[gpu.index] ? one.gpus[gpu.index].used / gpu.total : NaN))],
          { label: `GPU ${gpu.index} over two minutes, now ${Math.round(100 * gpu.busy)} percent busy, ${bytes(gpu.used)} of memory in use`, most: 1 }))),
      tile("Failures", number(live.recent().failed), "in two minutes", "by cause below",
        lines([points.map((point) => point.failed)], { label: "Failures per second over two minutes", most: 4 })));
    const rows = list.filter((model) => model.now.success || model.now.ready).map((model) => [model, live.current([model])])
      .sort((a, b) => b[1].rate - a[1].rate || a[0].now.name.localeCompare(b[0].now.name)).slice(0, 8);
    refill(busiest, h("h2", {}, "Busiest models"), rows.length
      ? table(["Model", "#Requests/s", "#Median", "#p99", "#Queued", ...(may("infer") ? ["Try"] : [])], rows.map(([model, one]) => [
        h("a", { href: `#/models/${encodeURIComponent(model.now.name)}` }, model.now.name, " ", h("span", { class: "muted" }, model.now.version)),
        number(one.rate), duration(one.p50), duration(one.p99), number(one.queued), may("infer") ? tryLink(model.now) : null].slice(0, may("infer") ? 6 : 5)), "Busiest models")
      : h("p", { class: "empty" }, "No model is loaded."));
    const causes = list.flatMap((model) => Object.entries(live.recent([model]).failures).map(([why, count]) => [model, why, count]));
    refill(failures, h("h2", {}, "Why requests failed"), causes.length
      ? table(["Model", "Cause", "#Requests"], causes.sort((a, b) => b[2] - a[2]).slice(0, 10).map(([model, why, count]) =>
        [model.now.name, live.REASONS[why] ?? why, number(count)]), "Failed requests by cause")
      : h("p", { class: "empty" }, "No request has failed in the last two minutes."),
    broken.map((model) => [h("h3", {}, `${model.now.name} `, state(model.now)), h("p", { class: "error" }, model.now.reason)]));
  }
  return { update };
}
