// The page of the shots of a machine: the list, and the curves and figures of the chosen ones.

import { sendSignedIn } from "./api.js";
import { byId, goToLogin, onAction, pollWhileVisible, setText } from "./dom.js";
import { machinePage, showAdminLink, showHeader } from "./header.js";
import { SignedOut } from "./login_session.js";
import { Comparison } from "./shot_comparison.js";
import { ShotList } from "./shot_list.js";
import { text } from "./texts.js";

const REFRESH_MS = 15000;
const MOST = 6; // more curves could not be told apart
const deviceId = decodeURIComponent(location.pathname.split("/").at(-2)).toUpperCase();
const path = `/api/devices/${deviceId}/shots`;
const problem = byId("problem");

let chosen = chosenInUrl(); // the ids of the shots to compare; null until one is chosen
const known = new Map(); // the chosen shots with their profiles, by id
let showing = 0;
let failed = false; // whether the last refresh failed

const list = new ShotList(path, { most: MOST, onChoose: choose, onOpen: (id) => choose([id]) });
const comparison = new Comparison({ path, problem, onDeleted });

function chosenInUrl() {
  const ids = (new URLSearchParams(location.search).get("shots") ?? "").split(",");
  const valid = ids.filter((id) => /^[1-9]\d{0,15}$/.test(id)).map(Number);
  return valid.length ? [...new Set(valid)].slice(0, MOST) : null;
}

/** Show these shots, and put them into the address. */
function choose(ids) {
  const first = chosen === null;
  chosen = ids;
  const asked = ids.length ? `?shots=${ids.join(",")}` : "";
  history[first ? "replaceState" : "pushState"](null, "", location.pathname + asked);
  return show().catch(tell);
}

async function show() {
  const number = ++showing;
  const ids = chosen ?? list.newest();
  list.mark(ids);
  byId("chosen").hidden = ids.length === 0;
  setText(byId("chosen-count"), text("shots.compared", { count: ids.length }));
  const missing = [];
  for (const id of ids.filter((one) => !known.has(one))) {
    try {
      known.set(id, await sendSignedIn("GET", `${path}/${id}`));
    } catch (failure) {
      if (failure.status !== 404) throw failure;
      missing.push(id);
    }
  }
  if (number !== showing) return;
  if (missing.length) {
    setText(problem, text("shots.missing"));
    chosen = ids.filter((id) => !missing.includes(id));
    list.mark(chosen);
  }
  await comparison.show(ids.filter((id) => known.has(id)).map((id) => known.get(id)));
}

function onDeleted(id) {
  known.delete(id);
  list.remove(id);
  showList();
  return choose((chosen ?? []).filter((one) => one !== id));
}

function showList() {
  byId("loading").hidden = true;
  byId("no-shots").hidden = !list.isEmpty;
  byId("shots-part").hidden = list.isEmpty;
}

async function refresh() {
  try {
    const { device } = await sendSignedIn("GET", `/api/devices/${deviceId}`);
    setText(byId("to-machine"), device.name);
    comparison.allow(device.role);
    const isFirst = !byId("loading").hidden;
    await list.refresh();
    showList();
    if (isFirst || failed) setText(problem);
    failed = false;
    if (isFirst || chosen === null) await show();
  } catch (failure) {
    failed = true;
    tell(failure);
  }
}

function tell(failure) {
  if (failure instanceof SignedOut) return goToLogin({ expired: true });
  if (failure.status) byId("loading").hidden = true;
  setText(problem, failure.message);
}

byId("to-machine").href = machinePage(deviceId);
if (showHeader(problem)) {
  onAction(byId("more"), problem, () => list.showEarlier());
  addEventListener("popstate", () => {
    chosen = chosenInUrl();
    show().catch(tell);
  });
  pollWhileVisible(refresh, REFRESH_MS);
  showAdminLink().catch(() => {});
}
