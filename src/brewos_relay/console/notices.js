// Notices to the account about machines that it lost or got.

import { sendSignedIn } from "./api.js";
import { byId, clockTime, createElement, onAction, setText } from "./dom.js";

const WORDS = {
  lost_to_machine: (id) => `${id} now belongs to another user: a machine with this id connected, and that user paired it. If the machine is yours, pair it again and switch it on within a day, or ask the administrator of this server to release it.`,
  won_by_machine: (id) => `${id} is yours now. Another user had paired a machine with the same id.`,
  claim_expired: (id) => `${id} was removed from your machines, because it did not connect within a day. Pair it again when it is on.`,
  released: (id) => `An administrator released ${id}: all of its users lost access. It can be paired again.`,
};

let newest = 0;

/** Load and show the notices. */
export async function refreshNotices() {
  const { notices } = await sendSignedIn("GET", "/api/notices");
  byId("notices-part").hidden = notices.length === 0;
  newest = notices[0]?.id ?? 0;
  byId("notices").replaceChildren(...notices.map(row));
}

function row({ at, kind, deviceId }) {
  const text = (WORDS[kind] ?? (() => kind))(deviceId);
  return createElement("li", "", [createElement("div", "what", text), createElement("time", "", clockTime(at))]);
}

onAction(byId("notices-read"), byId("problem"), async () => {
  setText(byId("problem"));
  await sendSignedIn("DELETE", `/api/notices?upTo=${newest}`);
  await refreshNotices();
});
