// A searchable list that loads page by page.

import { sendSignedIn } from "./api.js";
import { byId, onAction, setText } from "./dom.js";

const FIND_MS = 300;

export class PagedList {
  #parts;
  #next = null;
  #pages = 1;
  #shown = "";

  /** `name` is the field of the list in the answer; `row` makes an element from an entry. */
  constructor({ path, name, row, list, none, more, find, problem }) {
    this.#parts = { path, name, row, list: byId(list), none: byId(none), more: byId(more), find: byId(find) };
    onAction(byId(more), problem, () => {
      this.#pages++;
      return this.refresh();
    });
    let timer = null;
    byId(find).addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        this.#pages = 1;
        this.refresh().catch((failure) => setText(problem, failure.message));
      }, FIND_MS);
    });
  }

  /** Reload all pages that are shown. */
  async refresh() {
    const { path, name, row, list, none, more, find } = this.#parts;
    const wanted = find.value.trim();
    const found = [];
    this.#next = null;
    for (let page = 0; page < this.#pages; page++) {
      const asked = new URLSearchParams({ find: wanted, ...(this.#next !== null && { after: this.#next }) });
      const answer = await sendSignedIn("GET", `${path}?${asked}`);
      found.push(...answer[name]);
      this.#next = answer.next;
      if (this.#next === null) break;
    }
    if (wanted !== find.value.trim()) return; // the search has changed; its own refresh follows
    const shown = JSON.stringify(found);
    // Redraw only if something changed: a button must not vanish while the user taps it.
    if (shown !== this.#shown) list.replaceChildren(...found.map(row));
    this.#shown = shown;
    list.hidden = found.length === 0;
    none.hidden = found.length > 0;
    more.hidden = this.#next === null;
  }
}
