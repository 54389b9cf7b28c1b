// A list that comes a page at a time, and can be searched.

import { askSignedIn } from "./api.js";
import { byId, tell, whenAsked } from "./page.js";

const FIND_MS = 300;

export class Listing {
  #parts;
  #next = null;
  #pages = 1;
  #shown = "";

  /** `name` is that of the list in the answer; `row` makes an element of an entry. */
  constructor({ path, name, row, list, none, more, find, problem }) {
    this.#parts = { path, name, row, list: byId(list), none: byId(none), more: byId(more), find: byId(find) };
    whenAsked(byId(more), problem, () => {
      this.#pages++;
      return this.refresh();
    });
    let timer = null;
    byId(find).addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        this.#pages = 1;
        this.refresh().catch((failure) => tell(problem, failure.message));
      }, FIND_MS);
    });
  }

  /** Show as much as was shown before, as it is now. */
  async refresh() {
    const { path, name, row, list, none, more, find } = this.#parts;
    const wanted = find.value.trim();
    const found = [];
    this.#next = null;
    for (let page = 0; page < this.#pages; page++) {
      const asked = new URLSearchParams({ find: wanted, ...(this.#next !== null && { after: this.#next }) });
      const answer = await askSignedIn("GET", `${path}?${asked}`);
      found.push(...answer[name]);
      this.#next = answer.next;
      if (this.#next === null) break;
    }
    if (wanted !== find.value.trim()) return; // somebody went on typing; what they look for comes later
    const shown = JSON.stringify(found);
    // A button must not vanish under a finger: only what is new is shown anew.
    if (shown !== this.#shown) list.replaceChildren(...found.map(row));
    this.#shown = shown;
    list.hidden = found.length === 0;
    none.hidden = found.length > 0;
    more.hidden = this.#next === null;
  }
}
