// The page of one machine: connects the link to the parts of the page.

import { showDevice, startMachineSettings } from "./about.js";
import { ActivityList } from "./activity.js";
import { sendSignedIn } from "./api.js";
import { Commands } from "./commands.js";
import { byId, goToLogin, pollWhileVisible, setText } from "./dom.js";
import { showAdminLink, showHeader } from "./header.js";
import { Link } from "./link.js";
import { addLogLine } from "./log.js";
import { SignedOut } from "./login_session.js";
import { hideLastKnown, showLastKnown, showPresence, showReading } from "./readings.js";
import { offerInvites, startSharing } from "./sharing.js";
import { ShotCard } from "./shot.js";
import { mergeOldStatus, mergeStatus, readStatus } from "./state.js";
import { text } from "./texts.js";
import { Trend } from "./trend.js";
import { UserList } from "./users.js";

const REFRESH_MS = 15000;
const deviceId = decodeURIComponent(location.pathname.split("/").at(-1)).toUpperCase();
const problem = byId("problem");

let status = null; // the merged status of the machine
let presence = { isOnline: false, isKnown: false, lastSeen: undefined }; // null if it was never seen
let snapshotAgeMs = null; // the age of the next status
let isStale = false; // whether the next status is from before an absence of the machine
let ecoTarget = null;
let role = null;

const trend = new Trend(deviceId);
const shot = new ShotCard(deviceId, trend.history);
const commands = new Commands((message) => link.send(message));
const link = new Link(deviceId, {
  onMessage: take,
  onState: showLink,
  onSignedOut: () => goToLogin({ expired: true }),
});

function take(message) {
  switch (message.type) {
    case "connected":
      note({ isOnline: message.deviceOnline === true, isKnown: true });
      catchUp();
      return link.send({ type: "get_metrics" });
    case "device_status":
      snapshotAgeMs = message.snapshotAgeMs ?? null;
      isStale = message.staleGroups !== undefined;
      return note({ isOnline: message.online === true, lastSeen: message.lastSeen ?? presence.lastSeen });
    case "device_online":
      return note({ isOnline: true });
    case "device_offline":
      return note({ isOnline: false, lastSeen: new Date().toISOString() });
    case "status":
      return showWhole(message);
    case "status_delta":
      return show(mergeStatus(status, message));
    case "pico_status":
      return show(mergeOldStatus(status, message));
    case "device_info":
      ecoTarget = typeof message.ecoBrewTemp === "number" ? message.ecoBrewTemp : ecoTarget;
      return status && commands.show({ ...readStatus(status), ecoTarget });
    case "command_status":
      return commands.take(message);
    case "metrics":
      return people?.showCount(message.connection?.clients);
    case "log":
      return addLogLine(message);
    case "error":
      // Errors of commands arrive as command_status too.
      return ["device_offline", "forbidden"].includes(message.error) ? undefined : addLogLine({ ...message, level: "error" });
  }
}

function showWhole(message) {
  const at = Date.now() - (snapshotAgeMs ?? 0);
  if (isStale) showLastKnown(readStatus(message), at);
  else hideLastKnown();
  isStale = false;
  show(mergeStatus(status, message));
}

/** Show the last known state from the registry, until the machine sends a new one. */
async function lookUpLastKnown() {
  const known = await sendSignedIn("GET", `/api/devices/${deviceId}/state`);
  if (status !== null || !known.lastKnown || !known.messages.status) return;
  showLastKnown(readStatus(known.messages.status), Date.now() - known.snapshotAgeMs);
}

function show(known) {
  const ageMs = snapshotAgeMs ?? 0;
  snapshotAgeMs = null;
  status = known;
  const reading = readStatus(status);
  showReading(reading);
  commands.show({ ...reading, ecoTarget });
  if (presence.isOnline) trend.add(reading, Date.now() - ageMs);
  else showPresence(presence);
  shot.show();
}

function note(change) {
  presence = { ...presence, ...change };
  if (!presence.isOnline) trend.interrupt();
  showPresence(presence);
  showReachable();
}

/** Enable the controls if a command would reach the machine, and show that the values are live. */
function showReachable() {
  const isLive = link.state === "live";
  commands.enable(isLive && presence.isOnline);
  if (!isLive) return;
  const isAway = presence.isKnown && !presence.isOnline;
  byId("link").className = `link ${isAway ? "" : "live"}`;
  setText(byId("link-text"), text(isAway ? "link.server" : "link.live"));
}

function showLink({ state, retryAt, restarting }) {
  byId("retry").hidden = state !== "waiting";
  if (state !== "live") {
    byId("link").className = `link ${state === "connecting" ? "" : "lost"}`;
    setText(byId("link-text"), words());
    presence = { ...presence, isOnline: false };
    commands.interrupt();
    trend.interrupt();
    showPresence({ ...presence, isKnown: false });
  }
  showReachable();

  function words() {
    if (state === "connecting") return text("link.connecting");
    if (state === "ended") return text("link.ended");
    if (state !== "waiting") return text("link.stopped");
    const seconds = Math.max(1, Math.ceil((retryAt - Date.now()) / 1000));
    const why = !navigator.onLine ? text("link.no-network") : restarting ? text("link.restarting") : text("link.no-connection");
    return text("link.next", { problem: why, seconds });
  }
}

let charts = null;

/** Load what the relay has recorded while this page was not connected. The current values come first. */
async function catchUp() {
  charts ??= openCharts();
  try {
    await trend.load(byId("trend").clientWidth);
    await shot.refresh();
  } catch (failure) {
    if (failure instanceof SignedOut) goToLogin({ expired: true });
  }
}

/** Draw the charts. Their scripts are loaded after the current values. */
async function openCharts() {
  try {
    // The imports of these modules are named here, so that the browser asks for all of them at once.
    const [{ shotDrawer, startTrend }] = await Promise.all([
      import("./machine_charts.js"), import("./chart.js"), import("./vendor/uplot/uPlot.min.js"),
    ]);
    startTrend(trend.history);
    shot.chart = shotDrawer();
  } catch {
    charts = null; // try again with the next connection
  }
}

let people = null;
let activity = null;

async function refresh() {
  try {
    const { device } = await sendSignedIn("GET", `/api/devices/${deviceId}`);
    allow(device.role);
    showDevice(device);
    note({ lastSeen: [presence.lastSeen, device.lastSeen].filter(Boolean).sort().at(-1) ?? null });
    link.readmit();
    link.send({ type: "get_metrics" });
    await people.refresh();
    if (role === "owner") await activity.refresh();
    if (status === null) await lookUpLastKnown();
    if (trend.isStale && link.state !== "connecting") await catchUp();
    setText(problem);
  } catch (failure) {
    if (failure instanceof SignedOut) return goToLogin({ expired: true });
    // The line below the name of the machine shows a lost connection already.
    if (failure.status) setText(problem, failure.message);
  }
}

function allow(now) {
  if (now === role) return;
  role = now;
  commands.allow(role);
  people.allow(role);
  if (role === "owner") startSharing(deviceId, problem).catch((failure) => setText(problem, failure.message));
}

const session = showHeader(problem);
if (session) {
  people = new UserList(deviceId, { userId: session.user?.id, problem, onChange: () => activity.refresh() });
  activity = new ActivityList(deviceId, problem);
  startMachineSettings(deviceId, problem, showDevice);
  byId("retry").addEventListener("click", () => link.kick());
  setInterval(() => link.state === "waiting" && showLink(link), 1000);
  link.start();
  pollWhileVisible(refresh, REFRESH_MS);
  showAdminLink().then((isAdmin) => isAdmin && offerInvites()).catch(() => {});
}
