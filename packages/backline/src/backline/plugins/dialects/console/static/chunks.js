// Runs on the browser's audio thread: gathers a microphone's samples into chunks of one size.

class Chunks extends AudioWorkletProcessor {
  constructor({ processorOptions: { size } }) {
    super();
    this.size = size;
    this.ended = false;
    this.begin();
    this.port.onmessage = () => {
      if (this.ended) return;
      this.ended = true;
      this.hand(true);
    };
  }

  begin() {
    this.samples = new Float32Array(this.size);
    this.count = 0;
  }

  hand(last) {
    const { samples } = this;
    this.begin();
    this.port.postMessage({ samples, last }, [samples.buffer]);
  }

  process([[arrived]]) {
    for (let at = 0; arrived && !this.ended && at < arrived.length;) {
      const taken = Math.min(arrived.length - at, this.size - this.count);
      this.samples.set(arrived.subarray(at, at + taken), this.count);
      at += taken;
      this.count += taken;
      if (this.count === this.size) this.hand(false);
    }
    return !this.ended;
  }
}

registerProcessor("chunks", Chunks);
