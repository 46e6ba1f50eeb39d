// Replaces the stream of counters by two minutes that the first reading of the server grows into.

const real = window.fetch;
window.fetch = async (path, options) => {
  if (path !== "/v2/activity") return real(path, options);
  const first = await (await real(path, { headers: { ...options.headers, accept: "application/json" } })).json();
  const text = new TextEncoder(), rates = { add1: 900, add10: 300, both: 200, words: 12, basic_pitch: 25 };
  const spent = { add1: 400e3, add10: 500e3, both: 1400e3, words: 4e6, basic_pitch: 30e6 };   // ns of a request
  const totals = {};
  const grown = (model, second) => {
    const rate = rates[model.name] ?? 0, wave = 1 + 0.35 * Math.sin(second / 9 + rate) + 0.1 * Math.sin(second * 1.7);
    const own = totals[model.name + model.version] ??= { requests: 0, latency: Array(24).fill(0) };
    const more = model.default && model.ready ? Math.round(rate * wave) : 0, ns = spent[model.name] ?? 1e6;
    own.requests += more;
    const at = Math.round(Math.log2(ns / 1000));
    [0.05, 0.55, 0.3, 0.08, 0.02].forEach((share, index) => { own.latency[at + index] += Math.round(more * share); });
    const part = (share) => Math.round(own.requests * ns * share);
    return { ...model, success: own.requests, items: own.requests, runs: Math.ceil(own.requests / 3), failures: {},
      latency: [...own.latency], queued: second % 7 === 0 ? Math.round(rate / 300) : 0, memory: model.memory && 12e6,
      ns: { total: part(1), queue: part(0.2), input: part(0.05), infer: part(0.7), output: part(0.05) } };
  };
  const body = new ReadableStream({ start(controller) {
    for (let second = 0; second < 121; second += 1) {
      const frame = { ...first, reading: second + 1, whole: second === 0, models: first.models.map((one) => grown(one, second)),
        server: { ...first.server, time: 1.8e9 + second, cores: 2, cpu_seconds: second * 0.9 + 0.3 * Math.sin(second / 9),
          memory: 180e6, workers: { count: 1, cpu_seconds: second * 0.12, memory: 60e6 }, gpus: [] } };
      controller.enqueue(text.encode(`data: ${JSON.stringify(frame)}\n\n`));
    }
  } });
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
};
