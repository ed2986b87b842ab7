// The images or studies by rank: pages are fetched as they are scrolled to or stepped to.

import { get } from "./api.js";
import { element, endOf, fixed, nameOf, plural } from "./text.js";

const PAGE = 100;

export class List {
  // `gathered` is what images lie in, one and several: studies or folders.
  constructor(list, count, gathered, onSelect) {
    this.list = list;
    this.count = count;
    this.gathered = gathered;
    this.onSelect = onSelect;
    this.rows = [];
    this.at = -1;
    this.asked = 0;
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.select(Number(option.dataset.n));
    });
    list.addEventListener("scroll", () => {
      if (list.scrollTop + 2 * list.clientHeight > list.scrollHeight) this.#more();
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.step(step);
    });
  }

  get row() {
    return this.rows[this.at];
  }

  // The first page of what meets the filter; the first of it is selected.
  async ask(level, parameters) {
    const asked = ++this.asked;
    this.level = level;
    this.parameters = parameters;
    const { rows, total } = await get(`/api/${level}`, { ...parameters, limit: PAGE });
    if (asked !== this.asked) return;
    this.rows = [];
    this.at = -1;
    this.done = rows.length < PAGE;
    this.list.replaceChildren();
    this.list.scrollTop = 0;
    this.count.textContent = plural(total, level === "images" ? ["image", "images"] : this.gathered);
    this.#add(rows);
    this.select(rows.length ? 0 : -1);
  }

  async #more() {
    if (this.done || this.loading) return this.loading;
    const asked = this.asked;
    const after = this.rows.at(-1).position;
    this.loading = get(`/api/${this.level}`, { ...this.parameters, after, limit: PAGE }).then(({ rows }) => {
      if (asked !== this.asked) return;
      this.done = rows.length < PAGE;
      this.#add(rows);
    }).finally(() => (this.loading = null));
    return this.loading;
  }

  async step(by) {
    const wanted = Math.max(0, this.at + by);
    while (wanted + 3 >= this.rows.length && !this.done) {
      const loading = this.#more();
      if (wanted < this.rows.length) break;
      await loading;
    }
    if (this.rows.length) this.select(Math.min(wanted, this.rows.length - 1));
  }

  select(n) {
    this.#option(this.at)?.setAttribute("aria-selected", "false");
    this.at = n;
    const option = this.#option(n);
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.list.setAttribute("aria-activedescendant", option.id);
    else this.list.removeAttribute("aria-activedescendant");
    this.onSelect(this.row);
  }

  // The frames that a reviewer comes to next, or goes back to.
  near() {
    return [1, 2, 3, -1].map((by) => this.rows[this.at + by]).filter(Boolean);
  }

  // A frame was looked at or judged: what its row says is told anew.
  told(row) {
    this.rows.forEach((known, n) => {
      if (known.object_id !== row.object_id || known.frame !== row.frame) return;
      const { verdicts, hidden } = row;
      Object.assign(known, this.level === "studies" ? { verdicts } : { verdicts, hidden, rank: row.rank, score: row.score, flagged: row.flagged });
      this.#option(n).replaceWith(this.#made(known, n));
    });
  }

  #option(n) {
    return this.list.children[n];
  }

  #add(rows) {
    const options = rows.map((row, n) => this.#made(row, this.rows.length + n));
    this.rows.push(...rows);
    this.list.append(...options);
  }

  #made(row, n) {
    const name = this.level === "studies" ? endOf(row.group) : nameOf(row.uri);
    const parts = [
      element("span", { className: "rank" }, row.rank ?? (this.level === "studies" && !row.hidden ? row.position : "·")),
      element("span", { className: "name", title: row.uri ?? row.group }, name + (row.frame && this.level === "images" ? ` #${row.frame}` : "")),
      element("span", { className: "score" }, row.hidden ? "" : row.score === null ? row.reason ?? "" : fixed(row.score)),
    ];
    if (row.copies > 1) parts.push(element("span", { className: "copies", title: `${row.copies} objects with the same content` }, `×${row.copies}`));
    if (this.level === "studies") {
      const title = "flagged of those that were scored; those that failed beside";
      const counts = row.hidden ? `${row.frames}` : `${row.flagged_frames}/${row.frames}`;
      parts.push(element("span", { className: "copies", title }, counts + (row.failed_frames ? ` +${row.failed_frames} failed` : "")));
    }
    for (const { reviewer, verdict } of row.verdicts) {
      parts.push(element("span", { className: `chip ${verdict}`, title: `${reviewer}: ${verdict}` }, verdict[0].toUpperCase()));
    }
    const option = element("li", { id: `row-${n}`, className: row.flagged ? "flagged" : "" }, ...parts);
    option.dataset.n = n;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", String(n === this.at));
    return option;
  }
}
