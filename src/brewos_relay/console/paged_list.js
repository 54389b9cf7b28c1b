// A table that the server sorts and filters, and that loads page by page. The URL keeps what is shown.

import { sendSignedIn } from "./api.js";
import { byId, onAction, setText } from "./dom.js";

const FIND_MS = 300;
const ORDERS = { asc: "ascending", desc: "descending" };

export class PagedList {
  #parts;
  #next = null;
  #pages = 1;
  #shown = "";
  #wanted;

  /**
   * `name` is the field of the list in the answer, and the id of the table's body; `row` makes an element from an
   * entry. `fields` are inputs by the parameter that they set.
   */
  constructor({ path, name, row, none, more, sort, fields, problem }) {
    const body = byId(name);
    this.#parts = { path, name, row, body, table: body.closest("table"), none: byId(none), more: byId(more), problem };
    const asked = new URLSearchParams(location.search);
    this.#wanted = { sort: asked.get(`${name}.sort`) ?? sort, order: asked.get(`${name}.order`) ?? "asc" };
    for (const [parameter, field] of Object.entries(fields)) {
      field.value = asked.get(`${name}.${parameter}`) ?? field.value;
      this.#wanted[parameter] = field.value;
      this.#whenChanged(field, parameter);
    }
    for (const heading of this.#headings()) heading.querySelector("button").addEventListener("click", () => this.#sortBy(heading.dataset.sort));
    this.#showOrder();
    onAction(byId(more), problem, () => {
      this.#pages++;
      return this.refresh();
    });
  }

  /** Return the URL of the page with other entries of a list. */
  static url(name, wanted) {
    return `?${new URLSearchParams(Object.entries(wanted).map(([parameter, value]) => [`${name}.${parameter}`, value]))}#${name}-title`;
  }

  /** Reload all pages that are shown. */
  async refresh() {
    const { path, name, row, body, table, none, more } = this.#parts;
    const wanted = this.#wanted;
    const found = [];
    let next = null;
    for (let page = 0; page < this.#pages; page++) {
      const answer = await sendSignedIn("GET", `${path}?${new URLSearchParams({ ...wanted, ...(next !== null && { after: next }) })}`);
      found.push(...answer[name]);
      next = answer.next;
      if (next === null) break;
    }
    if (wanted !== this.#wanted) return; // its own refresh follows
    this.#next = next;
    const shown = JSON.stringify(found);
    // Redraw only if something changed: a button must not vanish while the user taps it.
    if (shown !== this.#shown) body.replaceChildren(...found.map(row));
    this.#shown = shown;
    table.hidden = found.length === 0;
    none.hidden = found.length > 0;
    more.hidden = this.#next === null;
  }

  #headings() {
    return this.#parts.table.querySelectorAll("th[data-sort]");
  }

  #whenChanged(field, parameter) {
    let timer = null;
    field.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#change({ [parameter]: field.value.trim() }), field.type === "search" ? FIND_MS : 0);
    });
  }

  #sortBy(sort) {
    const isUp = this.#wanted.sort === sort && this.#wanted.order === "asc";
    this.#change({ sort, order: isUp ? "desc" : "asc" });
    this.#showOrder();
  }

  #showOrder() {
    for (const heading of this.#headings()) {
      const isSorted = heading.dataset.sort === this.#wanted.sort;
      heading.setAttribute("aria-sort", isSorted ? ORDERS[this.#wanted.order] : "none");
    }
  }

  #change(change) {
    this.#wanted = { ...this.#wanted, ...change };
    this.#pages = 1;
    const asked = new URLSearchParams(location.search);
    for (const [parameter, value] of Object.entries(this.#wanted)) asked.set(`${this.#parts.name}.${parameter}`, value);
    history.replaceState(null, "", `?${asked}${location.hash}`);
    this.refresh().catch((failure) => setText(this.#parts.problem, failure.message));
  }
}
