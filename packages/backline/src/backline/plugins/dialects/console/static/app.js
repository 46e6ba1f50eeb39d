// The frame of the console: selects the page by the URL's fragment, and handles the visitor's key and the theme.

import { fill, h } from "./dom.js";
import { key, may, readRights, setKey, who } from "./api.js";
import * as live from "./live.js";
import { overview } from "./overview.js";
import { models, named } from "./models.js";
import { model } from "./model.js";
import { graphs } from "./graph.js";
import { traces } from "./traces.js";
import { audit } from "./audit.js";
import { log } from "./log.js";
import { repositories } from "./repositories.js";

const PAGES = [
  ["", "Overview", overview, "read"], ["models", "Models", models, "read"], ["graphs", "Graphs", graphs, "read"],
  ["traces", "Traces", traces, "read"], ["repositories", "Repositories", repositories, "read"], ["audit", "Audit", audit, "read"],
  ["log", "Log", log, "admin"],
];
const main = document.querySelector("#main"), nav = document.querySelector("#nav"), link = document.querySelector("#link");
let page = {};
// In a notebook's frame there is no room for the navigation.
document.body.classList.toggle("inline", new URLSearchParams(location.search).has("inline"));

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [first, ...rest] = path.split("/").map(decodeURIComponent);
  return { first, rest, query: new URLSearchParams(query ?? "") };
}

function show() {
  page.close?.();
  const { first, rest, query } = route();
  const open = PAGES.filter(([, , , scope]) => may(scope));
  fill(nav, (open.length ? open : [["models", "Models"]]).map(([name, title]) =>
    h("a", { href: `#/${name}`, "aria-current": name === first ? "page" : null }, title)));
  main.removeAttribute("aria-busy");
  let title;
  if (first === "models" && rest[0]) {
    title = rest[0];
    page = model(main, rest[0], rest[1] ?? "", query);
  } else {
    const found = open.find(([name]) => name === first) ?? open[0];
    title = found?.[1] ?? "Models";
    page = found ? found[2](main, query) : named(main);
  }
  document.title = `${title} · Backline`;
  page.update?.();
}

function linkState(kind, error) {
  link.className = `link ${kind}`;
  const denied = [401, 403].includes(error?.status);
  fill(link, h("span", {}, kind === "on" ? "Live" : denied ? "Not live: needs a key" : "Not connected"));
}

async function enter() {
  try {
    await readRights();
  } catch (error) {
    if (error.status === 401 && key()) { setKey(""); return enter(); }
    fill(main, h("h1", {}, "The server refuses this page"), h("p", { class: "error" }, error.message));
    return undefined;
  }
  const { name } = who();
  const button = document.querySelector("#who");
  button.textContent = name ? `Key: ${name}` : key() ? "Key" : may("admin") ? "No key needed" : "Enter a key";
  if (may("read")) live.start(linkState); else linkState("off", { status: 401 });
  show();
  return undefined;
}

function keyDialog() {
  const input = h("input", { type: "password", id: "key", autocomplete: "off", style: { width: "100%" } });
  const told = h("p", { class: "error", hidden: true, role: "alert" });
  const done = async (text) => {
    const before = key();
    setKey(text.trim());
    try { await readRights(); } catch (error) {
      setKey(before);
      told.textContent = error.message;
      told.hidden = false;
      return;
    }
    dialog.close();
    await enter();
  };
  const { name, grants } = who();
  const dialog = h("dialog", { "aria-labelledby": "key-title", onclose: () => dialog.remove() },
    h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); done(input.value); } },
      h("h2", { id: "key-title" }, name ? `You are ${name}` : "Enter a key"),
      h("p", { class: "muted small" }, grants.length && grants.some((grant) => grant.scopes.length)
        ? `You may: ${grants.map((grant) => grant.scopes.join(", ") + (grant.models.includes("*") ? "" : ` on ${grant.models.join(", ")}`)).join("; ")}.`
        : "You cannot do anything here without a key."),
      told, h("p", {}, h("label", { for: "key" }, "Key or token"), input),
      h("p", { class: "muted small" }, "It stays in this tab, until the tab is closed."),
      h("div", { class: "row" }, h("button", { class: "primary" }, "Use it"),
        key() ? h("button", { type: "button", onclick: () => done("") }, "Forget it") : null,
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))));
  document.body.append(dialog);
  dialog.showModal();
}

// A browser may prevent a page in a frame from storing anything.
function remember(name, value) { try { localStorage.setItem(name, value); } catch { /* not remembered */ } }
function recall(name) { try { return localStorage.getItem(name); } catch { return null; } }

function setTheme(name) {
  if (name) { document.documentElement.dataset.theme = name; remember("backline-theme", name); }
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.querySelector("#theme").textContent = dark ? "Light colours" : "Dark colours";
  return dark;
}

document.querySelector("#theme").addEventListener("click", () => setTheme(setTheme() ? "light" : "dark"));
document.querySelector("#who").addEventListener("click", keyDialog);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme());
setTheme(recall("backline-theme"));
addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); scrollTo(0, 0); });
live.onReading(() => { if (!document.hidden) page.update?.(); });
// A page that the browser keeps for the back button must close its connections: browsers allow six per server.
addEventListener("pagehide", () => { page.close?.(); live.pause(); });
addEventListener("pageshow", (event) => { if (event.persisted) enter(); });
enter();
