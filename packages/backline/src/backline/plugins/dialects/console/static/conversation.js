// A conversation with a model over a WebSocket: each chunk of a microphone's sound is a request, and responses
// arrive while later chunks are sent.

import { ask, key } from "./api.js";
import { listen } from "./microphone.js";

// Seconds of sound that may wait for the model.
const MOST_BEHIND = 30;

// Listens until `signal` aborts, and ends when every chunk has its response. With `sequence`, the last chunk
// ends the sequence that the chunks form. `body` makes the message of a chunk's samples. Rejects at the first request
// that fails, and when the model falls too far behind.
export async function converse(path, { rate, size, signal }, { sequence, body, onResponse, onProgress }) {
  const socket = await open(path);
  let sent = 0, done = 0, ended = false, sending = Promise.resolve(), take;
  const finished = new Promise((resolve, reject) => {
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.error) { reject(new Error(message.error)); return; }
      if (message.outputs) { onResponse(message.outputs); return; }
      done += 1;
      onProgress({ sent, done });
      if (ended && done === sent) resolve();
    };
    socket.onclose = ({ reason }) => reject(new Error(reason || "The server has ended the stream."));
    const send = async (samples, last) => {
      const message = await body(samples);
      if (last && sequence) socket.send('{"parameters": {"sequence_end": true}}');
      ended = last;
      sent += 1;
      socket.send(message);
      onProgress({ sent, done, level: samples.reduce((peak, value) => Math.max(peak, Math.abs(value)), 0) });
      if (((sent - done) * size) / rate > MOST_BEHIND) reject(new Error(`The model is ${MOST_BEHIND} seconds behind the microphone: it is too slow to listen live.`));
    };
    take = (samples, last) => { sending = sending.then(() => send(samples, last)).catch(reject); };
  });
  finished.catch(() => {});   // it may fail before it is awaited
  try {
    const stop = await listen(rate, size, take);
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
    await finished.finally(stop);
  } finally { socket.close(); }
}

function open(path) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}${path}`, key() ? ["backline", `backline.bearer.${key()}`] : ["backline"]);
    socket.onopen = () => { socket.onerror = null; resolve(socket); };
    // A browser does not say why a handshake failed. The server says why in response to a plain request for the path.
    socket.onerror = () => ask(path).then(() => ({ status: 426 }), (error) => error).then((error) => reject(error.status === 426
      ? new Error("The server responds, but not over WebSocket: a proxy in front of it may not forward WebSockets.") : error));
  });
}
