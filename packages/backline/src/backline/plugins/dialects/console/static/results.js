// Shows outputs as what they seem to be: values, tables, plots, images with boxes, sounds, notes, text, JSON.

import { fill, h, number, svg, table } from "./dom.js";

const NOTES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
const LOWEST_PIANO = 21;

// More notes than this are shown as JSON: each is an element of the page.
const MOST_NOTES = 20000;

export function noteName(midi) { const note = Math.round(midi); return `${NOTES[note % 12]}${Math.floor(note / 12) - 1}`; }

export function outputs(document_, specs, context = {}) {
  return specs.filter((spec) => spec.name in document_).map((spec) => output(spec, document_[spec.name], context));
}

function output(spec, value, context) {
  const ways = waysFor(spec, value, context), place = h("div", {}), choice = h("div", { class: "seg", role: "group", "aria-label": `How to show ${spec.name}` });
  const choose = (index) => { fill(place, ways[index][1]()); [...choice.children].forEach((button, at) => button.setAttribute("aria-pressed", at === index)); };
  fill(choice, ways.map(([name], index) => h("button", { type: "button", onclick: () => choose(index) }, name)));
  choose(0);
  return h("div", { class: "out", "data-output": spec.name }, h("h3", {}, spec.name, " ", h("code", { class: "muted" }, `${spec.datatype} [${sizes(value).join(", ")}]`)), ways.length > 1 ? choice : null, place);
}

function sizes(value) { const found = []; for (let one = value; Array.isArray(one); one = one[0]) found.push(one.length); return found; }

function squeeze(value) { let one = value; while (Array.isArray(one) && one.length === 1 && Array.isArray(one[0])) one = one[0]; return one; }

function waysFor(spec, value, context) {
  const ways = [], json = ["JSON", () => h("pre", { tabindex: "0" }, shorten(value))];
  if (spec.datatype === "BYTES") {
    const only = single(value);
    if (only?.b64 !== undefined) ways.push(...binary(only.b64, spec.name));
    else if (typeof only === "string") ways.push(...textual(only));
    else if (only && typeof only === "object") { const notes = noteList(only); if (notes) ways.push(["Piano roll", () => roll(notes)]); }
    else if (noteList(value)) ways.push(["Piano roll", () => roll(noteList(value))]);
    return [...ways, json];
  }
  const flat = squeeze(value), size = sizes(flat);
  if (!Array.isArray(flat)) return [["Value", () => h("p", { class: "value num" }, String(flat))]];
  if (size.length === 1) {
    if (size[0] <= 64) ways.push(["Bars", () => bars(flat)]);
    ways.push([size[0] > 512 ? "Waveform" : "Plot", () => plot([flat])]);
    if (size[0] > 64) ways.reverse();
  } else if (size.length === 2) {
    const notes = size[1] === 88 || size[1] === 128 ? decode(flat, size[1] === 88 ? LOWEST_PIANO : 0) : [];
    if (notes.length) ways.push(["Piano roll", () => roll(notes)]);
    if (/box/i.test(spec.name) && [4, 5, 6].includes(size[1]) && context.image) ways.push(["Boxes", () => boxes(flat, context.image)]);
    if (size[0] * size[1] <= 600) ways.push(["Table", () => grid(flat)]);
    if (size[0] > 3 && size[1] > 3) ways.push([size[1] > 40 ? "Spectrogram" : "Heat map", () => heat(flat)]);
    if (size[1] <= 4 || size[0] <= 4) ways.push(["Plot", () => plot(size[0] <= 4 ? flat : flat[0].map((_, index) => flat.map((row) => row[index])))]);
  } else if (size.length === 3 && [1, 3, 4].includes(size[2])) ways.push(["Image", () => picture(flat, (y, x, c) => flat[y][x][Math.min(c, size[2] - 1)], size[1], size[0])]);
  else if (size.length === 3 && [1, 3, 4].includes(size[0])) ways.push(["Image", () => picture(flat, (y, x, c) => flat[Math.min(c, size[0] - 1)][y][x], size[2], size[1])]);
  return [...ways, json];
}

function single(value) { let one = value; while (Array.isArray(one) && one.length === 1) one = one[0]; return Array.isArray(one) ? undefined : one; }

function shorten(value) {
  const text = JSON.stringify(value, (_, one) => (Array.isArray(one) && one.length > 200 ? [...one.slice(0, 200), `… ${one.length - 200} more`] : one), Array.isArray(value) && !Array.isArray(value[0]) && typeof value[0] !== "object" ? undefined : 1);
  return text.length > 40000 ? `${text.slice(0, 40000)}…` : text;
}

function textual(text) {
  const ways = [];
  try {
    const parsed = JSON.parse(text);
    if (parsed && typeof parsed === "object") {
      const notes = noteList(parsed);
      if (notes) ways.push(["Piano roll", () => roll(notes)]);
      ways.push(["Document", () => h("pre", { tabindex: "0" }, JSON.stringify(parsed, null, 2).slice(0, 40000))]);
    }
  } catch { /* ordinary text */ }
  ways.push(["Text", () => h("pre", { tabindex: "0", style: { whiteSpace: "pre-wrap" } }, text)]);
  return ways;
}

function binary(text, name) {
  const data = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const starts = (...codes) => codes.every((code, index) => data[index] === code);
  const ascii = (from, to) => String.fromCharCode(...data.subarray(from, to));
  const link = (type) => URL.createObjectURL(new Blob([data], { type }));
  const save = ["File", () => h("a", { href: link("application/octet-stream"), download: name, class: "button" }, `Save ${number(data.length)} bytes`)];
  const image = starts(0x89, 0x50, 0x4e, 0x47) ? "image/png" : starts(0xff, 0xd8) ? "image/jpeg" : ascii(0, 4) === "GIF8" ? "image/gif" : ascii(8, 12) === "WEBP" ? "image/webp" : "";
  if (image) return [["Image", () => h("img", { src: link(image), alt: `output ${name}` })], save];
  const sound = ascii(8, 12) === "WAVE" ? "audio/wav" : ascii(0, 4) === "OggS" ? "audio/ogg" : ascii(0, 4) === "fLaC" ? "audio/flac" : ascii(0, 3) === "ID3" ? "audio/mpeg" : "";
  if (sound) return [["Sound", () => h("audio", { controls: true, src: link(sound) })], save];
  if (ascii(0, 4) === "MThd") return [["Piano roll", () => roll(midi(data))], save];
  return [save];
}

// Notes: objects with a pitch and times, by whatever names

function noteList(value) {
  const list = Array.isArray(value) ? value : Array.isArray(value?.notes) ? value.notes : null;
  if (!list?.length || list.length > MOST_NOTES || !list.every((one) => one && typeof one === "object")) return null;
  const pick = (one, ...names) => names.map((name) => one[name]).find((found) => typeof found === "number");
  const notes = list.map((one) => {
    const pitch = pick(one, "midi", "pitch", "note"), start = pick(one, "start", "onset", "time", "start_time");
    const length = pick(one, "duration", "length"), end = pick(one, "end", "offset", "end_time") ?? (length === undefined ? undefined : start + length);
    return { midi: pitch, start, end, strength: pick(one, "strength", "velocity", "amplitude", "confidence") ?? 1 };
  });
  return notes.every((note) => note.midi >= 0 && note.midi <= 127 && [note.start, note.end].every(Number.isFinite)) ? notes : null;
}

// Notes in a matrix of probabilities [frame][pitch]: where a pitch stays above a threshold. Times are in frames.
export function decode(matrix, lowest, threshold = 0.3, shortest = 11, dip = 4) {
  const notes = [];
  for (let pitch = 0; pitch < matrix[0].length; pitch += 1) {
    let start = -1, low = 0, sum = 0;
    for (let frame = 0; frame <= matrix.length; frame += 1) {
      const value = frame < matrix.length ? Number(matrix[frame][pitch]) : 0;
      if (value >= threshold) { if (start < 0) { start = frame; sum = 0; } low = 0; sum += value; } else if (start >= 0) {
        low += 1;
        if (low > dip || frame === matrix.length) { const end = frame - low + 1; if (end - start >= shortest) notes.push({ midi: lowest + pitch, start, end, strength: Math.min(1, sum / (end - start)) }); start = -1; }
      }
    }
  }
  return notes.sort((a, b) => a.start - b.start || a.midi - b.midi);
}

function roll(notes) {
  if (!notes.length) return h("p", { class: "empty" }, "No notes.");
  const low = Math.min(...notes.map((note) => note.midi)) - 2, high = Math.max(...notes.map((note) => note.midi)) + 2;
  const first = Math.min(0, ...notes.map((note) => note.start)), last = Math.max(...notes.map((note) => note.end));
  const width = 640, left = 34, line = Math.max(5, Math.min(12, 300 / (high - low))), height = (high - low + 1) * line;
  const x = (time) => left + ((time - first) / (last - first || 1)) * (width - left), y = (pitch) => (high - pitch) * line;
  const most = Math.max(...notes.map((note) => note.strength)) || 1;
  const names = notes.map((note) => noteName(note.midi));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": `${notes.length} notes: ${names.slice(0, 40).join(" ")}`, "data-notes": names.join(" ") });
  for (let pitch = low; pitch <= high; pitch += 1) {
    if ([1, 3, 6, 8, 10].includes(((pitch % 12) + 12) % 12)) drawing.append(svg("rect", { x: left, y: y(pitch), width: width - left, height: line, fill: "var(--faint)" }));
    if (pitch % 12 === 0) drawing.append(svg("text", { x: 0, y: y(pitch) + line - 1, "font-size": 11, fill: "var(--muted)" }, noteName(pitch)));
  }
  for (const note of notes) drawing.append(svg("rect", { x: x(note.start), y: y(note.midi) + 0.5, width: Math.max(2, x(note.end) - x(note.start) - 1), height: line - 1, rx: 2, fill: "var(--accent)", opacity: 0.35 + (0.65 * note.strength) / most },
    svg("title", {}, `${noteName(note.midi)} from ${number(note.start)} to ${number(note.end)}`)));
  return h("div", {}, drawing, h("p", { class: "muted small", style: { marginTop: "8px" } }, `${notes.length} notes: ${names.slice(0, 60).join(" ")}${names.length > 60 ? " …" : ""}`));
}

function midi(data) {
  const view = new DataView(data.buffer), notes = [], division = view.getUint16(12) & 0x7fff;
  for (let at = 14; at + 8 <= data.length;) {
    const size = view.getUint32(at + 4), end = Math.min(data.length, at + 8 + size), open = {};
    let tick = 0, status = 0;
    at += 8;
    while (at < end) {
      let delta = 0, byte;
      do { byte = data[at++]; delta = delta * 128 + (byte & 127); } while (byte & 128 && at < end);
      tick += delta;
      if (data[at] & 128) status = data[at++];
      if (status === 255 || status === 240 || status === 247) {
        if (status === 255) at += 1;
        let length = 0;
        do { byte = data[at++]; length = length * 128 + (byte & 127); } while (byte & 128 && at < end);
        at += length;
      } else {
        const kind = status & 240, pitch = data[at], velocity = data[at + 1];
        at += kind === 192 || kind === 208 ? 1 : 2;
        if (kind === 144 && velocity) open[pitch] = [tick, velocity];
        else if ((kind === 128 || kind === 144) && open[pitch]) { notes.push({ midi: pitch, start: open[pitch][0] / division, end: tick / division, strength: open[pitch][1] / 127 }); delete open[pitch]; }
      }
    }
    at = end;
  }
  return notes.sort((a, b) => a.start - b.start);
}

// Numbers

function bars(values) {
  const finite = values.map(Number).map((value) => (Number.isFinite(value) ? value : 0)), most = Math.max(...finite.map(Math.abs), 1e-12);
  return h("div", { class: "fall", style: { gridTemplateColumns: "44px minmax(0, 1fr) 90px" } }, values.map((value, index) => [
    h("span", { class: "muted num" }, String(index)), h("div", { class: "lane" }, h("i", { class: "k2", style: { left: "0", width: `${(100 * Math.abs(finite[index])) / most}%` } })), h("span", { class: "num" }, short(value))]));
}

function short(value) { return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value); }

function grid(rows) {
  return table([...rows[0].map((_, index) => `#${index}`)], rows.map((row) => row.map((value) => (value && typeof value === "object" ? JSON.stringify(value) : short(value)))), "Values");
}

function plot(series) {
  const width = 640, height = 180, all = series.flat().map(Number).filter(Number.isFinite);
  const low = Math.min(0, ...extreme(all, Math.min)), high = Math.max(...extreme(all, Math.max), low + 1e-9);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", class: "chart tall", role: "img", "aria-label": `${series[0].length} values from ${short(extreme(all, Math.min)[0])} to ${short(extreme(all, Math.max)[0])}` });
  const y = (value) => height - ((value - low) / (high - low)) * height;
  drawing.append(svg("line", { class: "base", x1: 0, x2: width, y1: y(0), y2: y(0) }));
  series.forEach((values, index) => {
    let path = "";
    const step = Math.max(1, Math.floor(values.length / (2 * width)));
    for (let at = 0; at < values.length; at += step) {
      const part = values.slice(at, at + step).map(Number).filter(Number.isFinite);
      if (!part.length) continue;
      const x = (at / Math.max(1, values.length - 1)) * width;
      for (const value of step > 1 ? [Math.min(...part), Math.max(...part)] : part) path += `${path ? "L" : "M"}${x.toFixed(1)} ${y(value).toFixed(1)}`;
    }
    drawing.append(svg("path", { class: `line l${index + 1}`, d: path }));
  });
  return h("div", {}, drawing, h("p", { class: "muted small num" }, `from ${short(extreme(all, Math.min)[0])} to ${short(extreme(all, Math.max)[0])}`));
}

function extreme(values, pick) { let found = values[0] ?? 0; for (const value of values) found = pick(found, value); return [found]; }

function heat(rows) {
  const canvas = h("canvas", { width: rows.length, height: rows[0].length, role: "img", "aria-label": `a map of ${rows.length} by ${rows[0].length} values`, style: { width: "100%", height: `${Math.min(320, Math.max(120, rows[0].length * 2))}px`, imageRendering: "pixelated" } });
  const context = canvas.getContext("2d"), pixels = context.createImageData(rows.length, rows[0].length);
  const all = rows.flat().map(Number).filter(Number.isFinite), [low] = extreme(all, Math.min), [high] = extreme(all, Math.max);
  rows.forEach((row, x) => row.forEach((value, index) => {
    const share = (Number(value) - low) / (high - low || 1), at = 4 * ((row.length - 1 - index) * rows.length + x);
    pixels.data.set([20 + 70 * share, 30 + 200 * share, 40 + 150 * share, 255], at);
  }));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function picture(value, at, width, height) {
  const all = value.flat(2).map(Number), [high] = extreme(all, Math.max), [low] = extreme(all, Math.min), scale = high <= 1.5 ? (low < -0.01 ? (one) => (one + 1) * 127.5 : (one) => one * 255) : (one) => one;
  const canvas = h("canvas", { width, height, role: "img", "aria-label": `an image of ${width} by ${height}`, style: { minWidth: "128px", imageRendering: width < 128 ? "pixelated" : "auto" } });
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) pixels.data.set([scale(at(y, x, 0)), scale(at(y, x, 1)), scale(at(y, x, 2)), 255], 4 * (y * width + x));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function boxes(rows, file) {
  const canvas = h("canvas", { role: "img", "aria-label": `${rows.length} boxes on the image` });
  createImageBitmap(file).then((image) => {
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d"), [most] = extreme(rows.map((row) => Math.max(...row.slice(0, 4))), Math.max);
    context.drawImage(image, 0, 0);
    context.lineWidth = Math.max(2, image.width / 250);
    context.strokeStyle = "#35c2b0";
    for (const [x1, y1, x2, y2] of rows) { const sx = most <= 1 ? image.width : 1, sy = most <= 1 ? image.height : 1; context.strokeRect(x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy); }
  });
  return canvas;
}
