// What the account is told about machines that it lost, or has in the place of another user.

import { askSignedIn } from "./api.js";
import { byId, clock, make, tell, whenAsked } from "./page.js";

const WORDS = {
  lost_to_machine: (id) => `Another machine with the id ${id} has connected, and the user who paired it has it now. If the machine is yours, switch it on within a day of pairing it, or ask the administrator of this server to release it.`,
  won_by_machine: (id) => `You have ${id} now. Another user had paired a machine with this id.`,
  claim_expired: (id) => `You do not have ${id} any more: the machine has not connected for a day. Pair it again once it is on.`,
  released: (id) => `An administrator has taken ${id} from all of its users. It can be paired again.`,
};

let newest = 0;

/** Show the notices, if there are any. */
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
