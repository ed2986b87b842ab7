// The keyboard: one letter, one deed.

import { element } from "./text.js";

const TYPED = "input:not([type=range]), select, textarea";

// `deeds`: [key, what it does, the function]; keys are not taken from who types into a field, or looks at a dialog.
export function listen(deeds, hold) {
  const by = new Map(deeds.flatMap(([keys, , deed]) => keys.split(" ").map((key) => [key, deed])));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches(TYPED)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === " ") {
      // On a button it presses that.
      if (event.target.matches("button, summary")) return;
      event.preventDefault();
      if (!event.repeat) hold(true);
      return;
    }
    const deed = by.get(event.key);
    if (!deed) return;
    event.preventDefault();
    deed(event);
  });
  document.addEventListener("keyup", (event) => event.key === " " && hold(false));
  addEventListener("blur", () => hold(false));
}

export const told = (deeds) =>
  deeds.flatMap(([keys, what]) => [element("dt", {}, ...keys.split(" ").map((key) => element("kbd", {}, key))), element("dd", {}, what)]);
