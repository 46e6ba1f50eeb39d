// Ensembles and pipelines as graphs, with what flows through them now.

import { fill, h, number, svg } from "./dom.js";
import { json } from "./api.js";
import * as live from "./live.js";

const WIDTH = 168, HEIGHT = 50, GAP_X = 74, GAP_Y = 22;

export function graphs(main) {
  const body = h("div", {});
  fill(main, h("div", { class: "head" }, h("h1", {}, "Graphs")), h("p", { class: "lede" }, "Models that are made of other models: ensembles from their configuration, pipelines from the calls they have made."), body);
  let drawn = [];
  json("/v2/graph").then(({ models }) => {
    drawn = models.map((one) => draw(one));
    fill(body, drawn.length ? drawn.map((one) => one.element) : h("p", { class: "panel empty" }, "The server has no ensemble, and no model has called another one yet."));
    update();
  }, (error) => fill(body, h("p", { class: "error" }, error.message)));
  function update() { for (const one of drawn) one.update(); }
  return { update };
}

// Places each node one column after the last node that it waits for.
function layout(graph) {
  const nodes = [{ name: "inputs", kind: "end", takes: [], gives: graph.inputs }];
  if (graph.kind === "ensemble") {
    for (const step of graph.steps) nodes.push({ name: step.model, kind: "step", takes: Object.values(step.inputs), gives: Object.values(step.outputs) });
  } else {
    nodes.push({ name: graph.name, kind: "step", takes: graph.inputs, gives: [...graph.outputs, ...graph.calls.map((name) => `call ${name}`)] });
    for (const name of graph.calls) nodes.push({ name, kind: "step", takes: [`call ${name}`], gives: [] });
  }
  nodes.push({ name: "outputs", kind: "end", takes: graph.outputs, gives: [] });
  const edges = nodes.flatMap((to, index) => nodes.flatMap((from, at) => {
    const tensors = from.gives.filter((tensor) => to.takes.includes(tensor));
    return tensors.length && at !== index ? [{ from: at, to: index, tensors }] : [];
  }));
  nodes.forEach((node) => { node.column = 0; });
  for (let round = 0; round < nodes.length; round += 1) for (const { from, to } of edges) nodes[to].column = Math.max(nodes[to].column, nodes[from].column + 1);
  const columns = [];
  for (const node of nodes) (columns[node.column] ??= []).push(node);
  const tallest = Math.max(...columns.map((column) => column?.length ?? 0));
  columns.forEach((column, x) => column?.forEach((node, y) => { node.x = x * (WIDTH + GAP_X) + 1; node.y = (y + (tallest - column.length) / 2) * (HEIGHT + GAP_Y) + 1; }));
  return { nodes, edges, width: columns.length * (WIDTH + GAP_X) - GAP_X + 2, height: tallest * (HEIGHT + GAP_Y) - GAP_Y + 2 };
}

function cut(text, length) { return text.length > length ? `${text.slice(0, length - 1)}…` : text; }

function draw(graph) {
  const { nodes, edges, width, height } = layout(graph), rates = [];
  const drawing = svg("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${graph.name}: ${edges.map((edge) => `${nodes[edge.from].name} to ${nodes[edge.to].name}`).join(", ")}` });
  for (const { from, to, tensors } of edges) {
    const x1 = nodes[from].x + WIDTH, y1 = nodes[from].y + HEIGHT / 2, x2 = nodes[to].x, y2 = nodes[to].y + HEIGHT / 2, half = (x2 - x1) / 2;
    drawing.append(svg("path", { d: `M${x1} ${y1}C${x1 + half} ${y1} ${x2 - half} ${y2} ${x2} ${y2}` }, svg("title", {}, tensors.join(", "))),
      svg("path", { d: `M${x2 - 6} ${y2 - 4}L${x2} ${y2}L${x2 - 6} ${y2 + 4}` }));
  }
  for (const node of nodes) {
    const sub = svg("text", { class: "sub", x: node.x + 14, y: node.y + 38 }, node.kind === "end" ? cut((node.gives.length ? node.gives : node.takes).join(", "), 24) : "");
    drawing.append(svg("rect", { class: node.kind, x: node.x, y: node.y, width: WIDTH, height: HEIGHT, rx: 10 }), svg("text", { x: node.x + 14, y: node.y + 21 }, cut(node.name, 20)), sub);
    if (node.kind === "step") rates.push([node.name, sub]);
  }
  const element = h("section", { class: "panel" }, h("h2", {}, h("a", { href: `#/models/${encodeURIComponent(graph.name)}` }, graph.name), h("span", { class: "muted small" }, ` ${graph.kind}, version ${graph.version}`)), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Graph of ${graph.name}` }, drawing));
  return { element, update: () => { for (const [name, text] of rates) { const list = live.versions(name); text.textContent = list.length ? `${number(live.current(list).rate)} requests/s` : "not served"; } } };
}
