// The filter: its fields are made of what the run has.

import { element, plural } from "./text.js";

const CHOICES = {
  modality: "Modality", manufacturer: "Manufacturer", scanner: "Scanner model", site: "Site", month: "Month", reason: "Status",
};
const NUMBERS = { score_min: "Score from", score_max: "Score to", p_max: "p up to" };
const VERDICTS = {
  open: "none of mine", mine: "any of mine", others: "read by others", accepted: "accepted", rejected: "rejected",
  supplemented: "supplemented", disputed: "reviewers differ",
};

export class Filters {
  constructor(form, run, onChange) {
    this.form = form;
    this.run = run;
    this.fields = form.querySelector("#fields");
    this.told = form.querySelector("#filtered");
    let waiting;
    const changed = () => {
      clearTimeout(waiting);
      waiting = setTimeout(onChange, 150);
    };
    form.addEventListener("input", changed);
    form.addEventListener("reset", () => setTimeout(changed));
    form.addEventListener("submit", (event) => event.preventDefault());
    this.make(run.models[0].model_id);
  }

  make(model) {
    const kept = this.values();
    const offered = (name) => {
      const values = this.run.facets[model][name];
      // One value, or none: there is nothing to choose.
      return values.length > 1 ? [["", "any"], ...values.map(({ value, images }) => [value ?? "\0", `${value ?? "(none)"} · ${images.toLocaleString("en")}`])] : [];
    };
    const may = (name) => !this.run.blind || !this.run.hidden_filters.includes(name);
    const made = [this.#choice("verdict", "Verdict", [["", "any"], ...Object.entries(VERDICTS)])];
    if (may("flagged")) made.push(this.#choice("flagged", "Flagged", [["", "any"], ["yes", "flagged"], ["no", "not flagged"]]));
    for (const [name, label] of Object.entries(CHOICES)) if (offered(name).length) made.push(this.#choice(name, label, offered(name)));
    for (const [name, label] of Object.entries(NUMBERS)) {
      if (!may(name) || (name === "p_max" && !this.run.decision)) continue;
      made.push(element("label", {}, label, element("input", { name, type: "number", step: "any", inputMode: "decimal" })));
    }
    this.fields.replaceChildren(...made);
    for (const [name, value] of Object.entries(kept)) if (this.form.elements[name]) this.form.elements[name].value = value === "" ? "\0" : value;
  }

  #choice(name, label, options) {
    const select = element("select", { name }, ...options.map(([value, text]) => element("option", { value }, text)));
    return element("label", {}, label, select);
  }

  // What is asked for, by the names of the server's parameters; "" asks for rows without a value.
  values() {
    const found = {};
    for (const field of this.fields.querySelectorAll("select, input")) {
      if (field.value === "" || !field.checkValidity()) continue;
      found[field.name] = field.value === "\0" ? "" : field.value;
    }
    const n = Object.keys(found).length;
    this.told.textContent = n ? plural(n, ["condition", "conditions"]) : "";
    return found;
  }
}
