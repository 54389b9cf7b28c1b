// A table of values: the text alternative of a chart.

import { createElement, setText } from "./dom.js";

/**
 * Write rows into a table: `head` has the texts of the columns, each of `rows` the text of its heading and its values.
 * A table of the same shape keeps its cells, so that a reader does not lose the place.
 */
export function writeTable(table, caption, head, rows) {
  const shape = `${head.length} ${rows.length}`;
  if (table.dataset.shape !== shape) {
    table.dataset.shape = shape;
    table.replaceChildren(
      createElement("caption", "unseen"),
      createElement("thead", "", createElement("tr", "", head.map(() => heading("col")))),
      createElement("tbody", "", rows.map((row) => createElement("tr", "", row.map((_, place) => (place ? createElement("td") : heading("row")))))),
    );
  }
  const cells = [...table.querySelectorAll("th, td")];
  const texts = [...head, ...rows.flat()];
  write(table.querySelector("caption"), caption);
  cells.forEach((cell, number) => write(cell, texts[number]));
}

function heading(scope) {
  const cell = createElement("th");
  cell.scope = scope;
  return cell;
}

function write(element, text) {
  if (element.textContent !== text) setText(element, text);
}
