// Notices to the account about machines that it lost or got.

import { sendSignedIn } from "./api.js";
import { byId, createElement, onAction, setText } from "./dom.js";
import { clockTime } from "./format.js";
import { text } from "./texts.js";

const TEXTS = {
  lost_to_machine: "notice.lost",
  won_by_machine: "notice.won",
  claim_expired: "notice.expired",
  released: "notice.released",
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
  const words = Object.hasOwn(TEXTS, kind) ? text(TEXTS[kind], { machine: deviceId }) : kind;
  return createElement("li", "", [createElement("div", "what", words), createElement("time", "", clockTime(at))]);
}

onAction(byId("notices-read"), byId("problem"), async () => {
  setText(byId("problem"));
  await sendSignedIn("DELETE", `/api/notices?upTo=${newest}`);
  await refreshNotices();
});
