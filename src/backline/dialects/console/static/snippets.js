// The call that was just made, in other languages.

export function snippets(name, url, inputs, told, streams) {
  const path = `/models/${encodeURIComponent(name)}`, body = JSON.stringify(inputs);
  const large = body.length > 2000, shown = large ? JSON.stringify(Object.fromEntries(Object.keys(inputs).map((one) => [one, "..."]))) : body;
  const quoted = `'${shown.replaceAll("'", "'\\''")}'`, note = large ? "  # the values are left out here\n" : "";
  const python = py(large ? Object.fromEntries(Object.keys(inputs).map((one) => [one, "..."])) : inputs);
  const secret = sessionStorage.getItem("backline-key") ? ["-H \"Authorization: Bearer $BACKLINE_KEY\" ", ", headers={\"Authorization\": f\"Bearer {key}\"}", ", authorization: `Bearer ${key}`"] : ["", "", ""];
  const arrays = told.inputs.filter((spec) => spec.name in inputs);
  const dtype = { FP32: "np.float32", FP64: "np.float64", FP16: "np.float16", BYTES: "object", BOOL: "bool" };
  const batched = arrays.some((spec) => spec.shape[0] === -1 && depth(inputs[spec.name]) === spec.shape.length - 1);
  const array = (spec) => `np.array(${batched ? "[" : ""}${large ? "..." : py(inputs[spec.name])}${batched ? "]" : ""}, ${dtype[spec.datatype] ?? `np.${spec.datatype.toLowerCase()}`})`;
  return [
    ["curl", `curl -s ${streams ? "-N " : ""}${url}${path} ${secret[0]}-H 'Content-Type: application/json' \\\n  -d ${quoted}`],
    ["Python", `${note}import numpy as np\nimport backline\n\nwith backline.connect("${url}") as client:\n    result = client["${name}"](${arrays.map((spec) => `${JSON.stringify(spec.name).slice(1, -1)}=${array(spec)}`).join(", ")})\n    print(result)\n`],
    ["requests", `${note}import requests\n\nanswer = requests.post("${url}${path}", json=${python}${secret[1]}${streams ? ", stream=True" : ""})\nanswer.raise_for_status()\nprint(${streams ? "*answer.iter_lines(), sep=\"\\n\"" : "answer.json()"})\n`],
    ["tritonclient", `${note}import numpy as np\nimport tritonclient.http as triton\n\nclient = triton.InferenceServerClient("${url.replace(/^https?:\/\//, "")}")\n${arrays.map((spec, index) => `x${index} = ${array(spec)}\ninput${index} = triton.InferInput("${spec.name}", list(x${index}.shape), "${spec.datatype}")\ninput${index}.set_data_from_numpy(x${index})\n`).join("")}result = client.infer("${name}", [${arrays.map((_, index) => `input${index}`).join(", ")}])\nprint(${told.outputs.map((spec) => `result.as_numpy("${spec.name}")`).join(", ")})\n`],
    ["JavaScript", `const answer = await fetch("${url}${path}", {\n  method: "POST",\n  headers: { "content-type": "application/json"${secret[2]} },\n  body: JSON.stringify(${shown}),\n});\nconsole.log(await answer.${streams ? "text" : "json"}());\n`],
  ].filter(([language]) => !(streams && ["tritonclient", "Python"].includes(language)));
}

function depth(value) { return Array.isArray(value) ? 1 + depth(value[0]) : 0; }

function py(value) {
  if (Array.isArray(value)) return `[${value.map(py).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${py(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}
