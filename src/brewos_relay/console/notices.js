// Notices to the account about machines that it lost or got.

import { askSignedIn } from "./api.js";
import { byId, clock, make, tell, whenAsked } from "./page.js";

const WORDS = {
  lost_to_machine: (id) => `${id} now belongs to another user: a machine with this id connected, and that user paired it. If the machine is yours, pair it again and switch it on within a day, or ask the administrator of this server to release it.`,
  won_by_machine: (id) => `${id} is yours now. Another user had paired a machine with the same id.`,
  claim_expired: (id) => `${id} was removed from your machines, because it did not connect within a day. Pair it again when it is on.`,
  released: (id) => `An administrator released ${id}: all of its users lost access. It can be paired again.`,
};

let newest = 0;

/** Load and show the notices. */
export async function refreshNotices() {
  const { notices } = await askSignedIn("GET", "/api/notices");
  byId("notices-part").hidden = notices.length === 0;
  newest = notices[0]?.id ?? 0;
  byId("notices").replaceChildren(...notices.map(row));
}

function row({ at, kind, deviceId }) {
  const text = (WORDS[kind] ?? (() => kind))(deviceId);
  return make("li", "", [make("div", "what", text), make("time", "", clock(at))]);
}

whenAsked(byId("notices-read"), byId("problem"), async () => {
  tell(byId("problem"));
  await askSignedIn("DELETE", `/api/notices?upTo=${newest}`);
  await refreshNotices();
});
