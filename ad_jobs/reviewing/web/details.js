// What is known of the frame that is looked at, what was said of it, and how reviewers agree.

import { element, facts, fixed, percent, plural } from "./text.js";

export function frameDetails(run, { rows, copies }, model) {
  const row = rows.find((one) => one.model_id === model) ?? rows[0];
  const parts = [];
  if (row.hidden) parts.push(element("p", { className: "hidden-told" }, "Blinded: score, heatmap and others' verdicts appear once you have given yours."));
  const scores = rows.map((one) => [
    element("code", { title: one.model_id }, `${run.models.find((m) => m.model_id === one.model_id).kind} ${one.model_id.slice(0, 6)}`),
    fixed(one.score), one.rank ?? "–", one.p === null ? "–" : fixed(one.p), one.hidden ? "" : one.flagged ? "flagged" : "no",
  ]);
  parts.push(table("What the run says", ["model", "score", "rank", "p", "flagged"], scores));
  parts.push(element("h2", {}, "Verdicts"));
  const said = row.verdicts.map(({ reviewer, verdict, noted_at }) =>
    element("li", {}, element("span", { className: `chip ${verdict}` }, verdict), ` ${reviewer}, `, element("time", { dateTime: noted_at }, noted_at.slice(0, 16).replace("T", " "))));
  parts.push(said.length ? element("ul", { className: "verdicts" }, ...said) : element("p", { className: "quiet" }, row.hidden ? "Not shown." : "None yet."));
  parts.push(element("h2", {}, "Image"));
  parts.push(facts([
    ["object", `${row.object_id}, frame ${row.frame}`], ["place", row.uri], ["status", row.error_code ? `${row.status} (${row.error_code})` : row.status],
    ["detail", row.error_detail], ["size", row.rows && `${row.rows} × ${row.columns}, ${row.bits} bits, ${row.photometric}`],
    ["modality", row.modality], ["manufacturer", row.manufacturer], ["scanner", row.scanner], ["site", row.site], ["month", row.study_month],
    [run.pictures ? "folder" : "study", row.group],
  ]));
  if (copies.length) {
    parts.push(element("h2", {}, `Same content: ${plural(copies.length, ["other object", "other objects"])}`));
    parts.push(element("ul", { className: "copies-list" }, ...copies.map((uri) => element("li", {}, uri))));
  }
  return parts;
}

export function agreementDetails(found) {
  const readers = Object.entries(found.reviewers);
  if (!readers.length) return [element("p", {}, "No verdict has been noted yet.")];
  const parts = [table("Verdicts that stand", ["reviewer", "verdicts"], readers)];
  parts.push(element("p", {}, `Read by two or more: ${plural(found.read_by_several, ["image", "images"])}.`));
  if (!found.read_by_several) return parts;
  const row = (label, { agree, kappa }) => [label, percent(agree), kappa === null ? "–" : kappa.toFixed(3)];
  parts.push(table("Agreement", ["", "agree", `${found.statistic}'s kappa`], [row("abnormal or not", found.abnormal), row("word for word", found.words)]));
  return parts;
}

function table(caption, heads, rows) {
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => (text ? element("th", { scope: "col" }, text) : element("td")))));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("caption", {}, caption), head, element("tbody", {}, ...body));
}
