// Pictures and heatmaps that were fetched, and the next ones, fetched before they are asked for.

import { samples } from "./api.js";

const KEEP_BYTES = 384 << 20;

export class Samples {
  constructor(models) {
    // Models of one window see the same picture: it is fetched once.
    this.same = Object.fromEntries(models.map((m) => [m.model_id, models.find((o) => o.window === m.window).model_id]));
    this.kept = new Map();
    this.ahead = new AbortController();
  }

  picture(frame, model, whole) {
    const parameters = { model: this.same[model], range: whole ? "whole" : "own" };
    return this.#of(`/api/picture/${frame.object_id}/${frame.frame}`, parameters);
  }

  heatmap(frame, model) {
    return this.#of(`/api/heatmap/${frame.object_id}/${frame.frame}`, { model });
  }

  // Of frames that may be asked for next; what was begun for others is given up.
  fetchAhead(frames, models, whole) {
    this.ahead.abort();
    this.ahead = new AbortController();
    const { signal } = this.ahead;
    const one = async (frame) => {
      for (const model of models) {
        await this.#of(`/api/picture/${frame.object_id}/${frame.frame}`, { model: this.same[model], range: whole ? "whole" : "own" }, signal);
        if (frame.has_heatmap) await this.#of(`/api/heatmap/${frame.object_id}/${frame.frame}`, { model }, signal);
      }
    };
    // One after the other, so that what is looked at now is not kept waiting; why one failed is told when it is shown.
    const scored = frames.filter(({ status }) => status === undefined || status === "scored");
    scored.reduce((before, frame) => before.then(() => signal.aborted || one(frame)).catch(() => undefined), Promise.resolve());
  }

  // What a verdict shows or hides is asked for again.
  forget(frame) {
    for (const key of [...this.kept.keys()]) if (key.startsWith(`/api/heatmap/${frame.object_id}/${frame.frame}?`)) this.kept.delete(key);
  }

  #of(path, parameters, signal) {
    const key = `${path}?${new URLSearchParams(parameters)}`;
    const known = this.kept.get(key);
    if (known && !known.given_up) {
      this.kept.delete(key);
      this.kept.set(key, known);
      // Somebody waits for it now: it is not given up any more.
      if (!signal) known.wanted = true;
      return known.promise;
    }
    const own = new AbortController();
    const entry = { bytes: 0, wanted: !signal, given_up: false };
    signal?.addEventListener("abort", () => {
      if (entry.wanted || entry.bytes) return;
      entry.given_up = true;
      own.abort();
    });
    entry.promise = samples(path, parameters, own.signal).then((found) => {
      entry.bytes = found.values.byteLength;
      this.#drop();
      return found;
    });
    // A failure is not kept: the next who asks asks again.
    entry.promise.catch(() => this.kept.get(key) === entry && this.kept.delete(key));
    this.kept.set(key, entry);
    return entry.promise;
  }

  #drop() {
    let total = [...this.kept.values()].reduce((sum, entry) => sum + entry.bytes, 0);
    for (const [key, entry] of this.kept) {
      if (total <= KEEP_BYTES) return;
      total -= entry.bytes;
      this.kept.delete(key);
    }
  }
}
