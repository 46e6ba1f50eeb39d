// The sound of a microphone, in chunks.

// Models should get the sound unprocessed: by default, browsers process it for telephony.
export const AS_IT_IS = { audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } };

// Calls `onChunk(samples, last)` with `size` samples of one channel each, at `rate` a second. Returns a function
// that stops; the remaining samples then come as the last chunk, padded with silence.
export async function listen(rate, size, onChunk) {
  const media = await navigator.mediaDevices.getUserMedia(AS_IT_IS);
  const release = () => media.getTracks().forEach((track) => track.stop());
  let context;
  try {
    context = new AudioContext({ sampleRate: rate });
    await context.audioWorklet.addModule(new URL("chunks.js", import.meta.url));
    const source = context.createMediaStreamSource(media);
    const chunks = new AudioWorkletNode(context, "chunks", { channelCount: 1, channelCountMode: "explicit", processorOptions: { size } });
    chunks.port.onmessage = ({ data: { samples, last } }) => { if (last) context.close(); onChunk(samples, last); };
    // The node's output is silent. It is connected because browsers need not run a node that nothing hears.
    source.connect(chunks).connect(context.destination);
    return () => { release(); chunks.port.postMessage("stop"); };
  } catch (error) {
    release();
    context?.close();
    // Firefox does not convert rates here (bug 1674892 of Mozilla).
    if (error.name === "NotSupportedError") throw new Error(`this browser cannot listen at ${rate} Hz; choose the microphone's own rate, often 48,000 Hz, or use another browser`);
    throw error;
  }
}

// A WAV file of 16-bit samples.
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);   // PCM, one channel
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, index) => view.setInt16(44 + 2 * index, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true));
  return new Blob([view], { type: "audio/wav" });
}
