// Computes rates and percentiles over the last seconds from the stream of the server's counters.

import { follow } from "./api.js";

const WINDOW = 10;      // readings from which a current number is computed
const KEPT = 121;       // readings that charts show: two minutes
export const REASONS = {
  queue_full: "the queue was full", total_queue_full: "the queues of all models were full", too_late: "it would have been late",
  expired: "its time ran out", cancelled: "the client left", failed: "the model failed", invalid: "the request did not fit the model",
};

const models = new Map();
let order = [];
let server = [];
const listeners = new Set();
let stop = null;

export function start(onState) {
  stop?.();
  models.clear(); server = []; order = [];
  stop = follow("/v2/activity", take, onState);
}

export function pause() { stop?.(); stop = null; }

export function onReading(listener) { listeners.add(listener); return () => listeners.delete(listener); }

function take(frame) {
  if (frame.whole) { models.clear(); server = []; }
  push(server, frame.server);
  for (const entry of frame.models) {
    const name = id(entry.name, entry.version);
    const known = models.get(name);
    if (known && entry.success < known.now.success) known.past = []; // loaded again: the counters start at 0
    if (known) known.now = entry; else models.set(name, { now: entry, past: [] }); } order =
    frame.present.map(([name, version]) => id(name, version)); for (const known of models.keys()) if
    (!order.includes(known)) models.delete(known); for (const model of models.values()) push(model.past, { at:
    frame.server.time, ...model.now }); for (const listener of listeners) listener(); }

function push(list, item) { list.push(item); if (list.length > KEPT) list.shift(); }
function id(name, version) { return `${name}\n${version}`; }

export function versions(name) {
  const found = order.map((one) => models.get(one)).filter(Boolean);
  return name === undefined ? found : found.filter((model) => model.now.name === name);
}
export function version(name, number) { return models.get(id(name, number)); }
export function readings() { return server; }
export function latest() { return server.at(-1); }

// Sums over versions between two readings, `back` and `end` counted from the newest.
function between(list, back, end = 0) {
  const sums = { seconds: 0, success: 0, items: 0, runs: 0, failed: 0, failures: {}, latency: [], ns: {}, queued: 0 };
  for (const model of list) {
    const last = model.past.at(-1 - end), first = model.past.at(-Math.min(back + 1 + end, model.past.length));
    if (!last) continue;
    sums.queued += last.queued;
    if (!first || first === last) continue;
    sums.seconds = Math.max(sums.seconds, last.at - first.at);
    for (const field of ["success", "items", "runs"]) sums[field] += last[field] - first[field];
    for (const [reason, count] of Object.entries(last.failures)) {
      const more = count - (first.failures[reason] ?? 0);
      if (more) { sums.failures[reason] = (sums.failures[reason] ?? 0) + more; sums.failed += more; }
    }
    last.latency.forEach((count, index) => {
      sums.latency[index] = (sums.latency[index] ?? 0) + count - (first.latency[index] ?? 0);
    });
    for (const [stage, ns] of Object.entries(last.ns)) sums.ns[stage] = (sums.ns[stage] ?? 0) + ns - first.ns[stage];
  }
  return sums;
}

export function current(list = versions()) {
  const sums = between(list, WINDOW);
  return { ...sums, rate: sums.seconds ? sums.success / sums.seconds : 0, p50: percentile(sums.latency, 0.5),
    p95: percentile(sums.latency, 0.95), p99: percentile(sums.latency, 0.99) };
}

export function recent(list = versions()) { return between(list, KEPT); }

// A point per second for charts.
export function history(list = versions()) {
  const points = [];
  const length = Math.max(0, ...list.map((model) => model.past.length));
  for (let end = length - 2; end >= 0; end -= 1) {
    const one = between(list, 1, end), three = between(list, 3, end);
    points.push({ rate: one.seconds ? one.success / one.seconds : 0, queued: one.queued, failed: one.failed,
      p50: percentile(three.latency, 0.5), p95: percentile(three.latency, 0.95), p99: percentile(three.latency, 0.99) });
  }
  return points;
}

// The cores that the server process and its workers kept busy, a point per second.
export function cpu() {
  return server.slice(1).map((now, index) => {
    const before = server[index], seconds = now.time - before.time;
    const of = (one, other) => (seconds > 0 ? Math.max(0, (one - other) / seconds) : 0);   // at least 0: the CPU time of a worker that has ended is missing
    return { own: of(now.cpu_seconds, before.cpu_seconds), workers: of(now.workers.cpu_seconds, before.workers.cpu_seconds) };
  });
}

// In microseconds; bucket i counts durations from 2 ** (i - 1) to below 2 ** i.
export function percentile(latency, share) {
  const total = latency.reduce((sum, count) => sum + (count ?? 0), 0);
  if (!total) return NaN;
  let left = total * share;
  for (let index = 0; index < latency.length; index += 1) {
    const count = latency[index] ?? 0;
    if (count && left <= count) {
      const low = index ? 2 ** (index - 1) : 0, high = 2 ** index;
      return low + (high - low) * (left / count);
    }
    left -= count;
  }
  return 2 ** latency.length;
}
