// The call that was just made, in other languages.

import { key } from "./api.js";

// `file` describes a body that was sent without JSON: a file, or samples.
export function snippets(name, url, inputs, told, streams, file) {
  const link = `${url}/models/${encodeURIComponent(name)}`, address = JSON.stringify(link), body = JSON.stringify(inputs);
  const large = body.length > 2000, shown = large ? JSON.stringify(Object.fromEntries(Object.keys(inputs).map((one) => [one, "..."]))) : body;
  const target = sh(link), quoted = sh(shown), note = large ? "  # the values are left out here\n" : "";
  const python = py(large ? Object.fromEntries(Object.keys(inputs).map((one) => [one, "..."])) : inputs);
  const secret = key()
    ? ["-H \"Authorization: Bearer $BACKLINE_KEY\" ", ", headers={\"Authorization\": f\"Bearer {key}\"}", ", authorization: `Bearer ${key}`", ", api_key=key", ", headers={\"authorization\": f\"Bearer {key}\"}"] : ["", "", "", "", ""];
  if (file) return ofFile(name, url, file, told, secret, streams);
  const arrays = told.inputs.filter((spec) => spec.name in inputs);
  const dtype = { FP32: "np.float32", FP64: "np.float64", FP16: "np.float16", BYTES: "object", BOOL: "bool" };
  // A single value fits any shape with one element, and a value without the batch dimension is a batch of one.
  const array = (spec) => {
    const value = inputs[spec.name], missing = Math.max(0, spec.shape.length - depth(value)), times = depth(value) && missing > 1 ? 0 : missing;
    return `np.array(${"[".repeat(times)}${large ? "..." : py(value)}${"]".repeat(times)}, ${dtype[spec.datatype] ?? `np.${spec.datatype.toLowerCase()}`})`;
  };
  const given = arrays.map((spec) => argument(spec.name, array(spec))).join(", ");
  const tensors = arrays.map((spec, index) => `x${index} = ${array(spec)}\ninput${index} = triton.InferInput(${py(spec.name)}, list(x${index}.shape), "${spec.datatype}")\ninput${index}.set_data_from_numpy(x${index})\n`).join("");
  const host = url.replace(/^https?:\/\//, ""), inputList = `[${arrays.map((_, index) => `input${index}`).join(", ")}]`, shownOutputs = told.outputs.map((spec) => `result.as_numpy(${py(spec.name)})`).join(", ");
  return [
    ["curl", `curl -s ${streams ? "-N " : ""}${target} ${secret[0]}-H 'Content-Type: application/json' \\\n  -d ${quoted}`],
    ["Python", `${note}import numpy as np\nimport backline\n\nwith backline.connect("${url}"${secret[3]}) as client:\n    ${streams ? "for result in " : "result = "}client[${py(name)}]${streams ? ".stream" : ""}(${given}${streams ? "):\n        " : ")\n    "}print(${results(told)})\n`],
    ["requests", `${note}import requests\n\nanswer = requests.post(${address}, json=${python}${secret[1]}${streams ? ", stream=True" : ""})\nanswer.raise_for_status()\nprint(${streams ? "*answer.iter_lines(), sep=\"\\n\"" : "answer.json()"})\n`],
    ["tritonclient", streams
      ? `${note}import queue\n\nimport numpy as np\nimport tritonclient.grpc as triton\n\nresults = queue.Queue()\n${tensors}with triton.InferenceServerClient("${host}") as client:\n    client.start_stream(lambda result, error: results.put(error or result)${secret[4]})\n    client.async_stream_infer(${py(name)}, ${inputList}, enable_empty_final_response=True)\n    while True:\n        result = results.get()\n        if isinstance(result, Exception):\n            raise result\n        if result.get_response().parameters["triton_final_response"].bool_param:\n            break\n        print(${shownOutputs})\n`
      : `${note}import numpy as np\nimport tritonclient.http as triton\n\nclient = triton.InferenceServerClient("${host}")\n${tensors}result = client.infer(${py(name)}, ${inputList}${secret[4]})\nprint(${shownOutputs})\n`],
    ["JavaScript", `const answer = await fetch(${address}, {\n  method: "POST",\n  headers: { "content-type": "application/json"${secret[2]} },\n  body: JSON.stringify(${shown}),\n});\nconsole.log(await answer.${streams ? "text" : "json"}());\n`],
    ...(streams ? [] : [["One output as a file", told.outputs.map((spec) => `curl -s ${target} ${secret[0]}-H 'Content-Type: application/json' \\\n  -H ${sh(`Accept: application/x-npy; output=${spec.name}`)} -o ${sh(`${spec.name.replaceAll("/", "_")}.npy`)} \\\n  -d ${quoted}\n`).join("\n") + "\n# Other forms where they fit the output: image/png, 'audio/wav; rate=16000', text/plain\n"]]),
  ];
}

function ofFile(name, server, file, told, secret, streams) {
  const kind = "application/octet-stream", url = `${server}/models/${encodeURIComponent(name)}`, address = JSON.stringify(url), spec = told.inputs.find((one) => !one.parameters?.optional) ?? told.inputs[0];
  const fields = secret[1] ? `{"Content-Type": "${kind}", "Authorization": f"Bearer {key}"}` : `{"Content-Type": "${kind}"}`;
  // All variable dimensions but the last become 1.
  const last = spec.shape.lastIndexOf(-1), shape = spec.shape.map((size, index) => (size < 0 && (spec.datatype === "BYTES" || index !== last) ? 1 : size)).join(", ");
  const array = spec.datatype === "BYTES" ? `np.array([open(${py(file)}, "rb").read()], object).reshape(${shape || "()"})` : `np.fromfile(${py(file)}, np.float32).reshape(${shape || "()"})`;
  return [
    ["curl", `curl -s ${streams ? "-N " : ""}${sh(url)} ${secret[0]}-H 'Content-Type: ${kind}' \\\n  --data-binary ${sh(`@${file}`)}`],
    ["Python", `import numpy as np\nimport backline\n\nwith backline.connect("${server}"${secret[3]}) as client:\n    ${streams ? "for result in " : "result = "}client[${py(name)}]${streams ? ".stream" : ""}(${argument(spec.name, array)}${streams ? "):\n        " : ")\n    "}print(${results(told)})\n`],
    ["requests", `import requests\n\nwith open(${py(file)}, "rb") as file:\n    answer = requests.post(${address}, data=file, headers=${fields}${streams ? ", stream=True" : ""})\nanswer.raise_for_status()\nprint(answer.${streams ? "text" : "json()"})\n`],
    ["JavaScript", `const answer = await fetch(${address}, {\n  method: "POST",\n  headers: { "content-type": "${kind}"${secret[2]} },\n  body: file,\n});\nconsole.log(await answer.${streams ? "text" : "json"}());\n`],
  ];
}

// A stream over a WebSocket. `whole` is the kind of each message, as in `bodyOf`; `inputs` are for messages in JSON.
export function ofStream(url, inputs, whole, { rate, size, sequence }) {
  const chunk = { SAMPLES: `new Float32Array(${size})`, FILE: "file" }[whole] ?? `JSON.stringify(${JSON.stringify(inputs)})`;
  const secret = key() ? ", `backline.bearer.${key}`" : "";
  return [["JavaScript", `const socket = new WebSocket(${JSON.stringify(url.replace(/^http/, "ws"))}, ["backline"${secret}]);
socket.onmessage = ({ data }) => console.log(data);
socket.onopen = () => {
  // A chunk of ${Number((size / rate).toFixed(2))} s at ${rate} Hz. Send the next ones as they come.
${sequence ? `  // This, before the last one, ends the sequence: socket.send('{"parameters": {"sequence_end": true}}')\n` : ""}  socket.send(${chunk});
};
`]];
}

// The author of a model chooses the names in it, so each is quoted where it could be taken for code.

// A word of a shell command.
function sh(text) { return /^[\w@%+=:,.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`; }

// A keyword argument in Python.
function argument(name, value) { return /^[A-Za-z_]\w*$/.test(name) ? `${name}=${value}` : `**{${py(name)}: ${value}}`; }

function results(told) { return told.outputs.map((spec) => `result[${py(spec.name)}]`).join(", "); }

function depth(value) { return Array.isArray(value) ? 1 + depth(value[0]) : 0; }

function py(value) {
  if (Array.isArray(value)) return `[${value.map(py).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${py(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}
