// Words and elements. What comes from outside is only ever set as text.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export const nameOf = (uri) => uri.replace(/\/+$/, "").split("/").at(-1) || uri;

// Studies are told apart by how they end: the last two of a path's folders, or of a UID what fits.
export const endOf = (group) => (group.includes("/") ? group.split("/").slice(-2).join("/") : group.length > 24 ? `…${group.slice(-22)}` : group);

export const fixed = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

export const plural = (n, [one, several]) => `${n.toLocaleString("en")} ${n === 1 ? one : several}`;

export function facts(pairs) {
  const list = element("dl");
  for (const [term, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", {}, term), element("dd", {}, value));
  }
  return list;
}
