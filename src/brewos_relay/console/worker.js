// The service worker of the console. The server puts `served` before this text: the files of the present version, a mark
// of the offline page, and the texts of notifications in the language of the user.
"use strict";

const PREFIX = "brewos-relay-console ";
const OFFLINE = "/console/offline";
// The paths of files contain their version. So a page of a newer version finds none of its files here.
const CACHE = `${PREFIX}${served.files[0]} ${served.offline}`;
const files = new Set(served.files);

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(fill());
});

/** Store the files of this version. Throws if an instance of another version answers, as during an update. */
async function fill() {
  const cache = await caches.open(CACHE);
  await Promise.all(served.files.map(async (path) => {
    const file = await fetch(path);
    if (!file.ok || !file.headers.get("Cache-Control")?.includes("immutable")) throw new Error(path);
    await cache.put(path, file);
  }));
  await cache.add(new Request(OFFLINE, { cache: "reload" }));
}

addEventListener("message", (event) => event.data === "skipWaiting" && event.waitUntil(skipWaiting()));

addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
    await Promise.all(names.map((name) => caches.delete(name)));
    await clients.claim();
  })());
});

addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.mode === "navigate") event.respondWith(openPage(event));
  else if (request.method === "GET" && url.origin === location.origin && files.has(url.pathname)) event.respondWith(readFile(request));
  // The browser sends all other requests, like those of the API, without this worker.
});

async function openPage(event) {
  try {
    const page = await fetch(event.request);
    // The web app at / or the browser may have removed the cache, or ended this worker before it had stored the last entry.
    event.waitUntil(inCache(OFFLINE).then((isThere) => isThere || fill()).catch(() => caches.delete(CACHE)));
    return page;
  } catch {
    return (await inCache(OFFLINE)) ?? Response.error();
  }
}

const readFile = async (request) => (await inCache(request)) ?? fetch(request);
const inCache = (request) => caches.match(request, { cacheName: CACHE }); // without making an empty cache of that name

addEventListener("push", (event) => {
  const { title, body, tag, data } = event.data.json();
  event.waitUntil(registration.showNotification(...translated({ title, body, tag, data })));
});

/** Return the arguments of a notification. The server writes English; texts of the machine stay as they are. */
function translated({ title, body, tag, data }) {
  const kind = served.notifications[data?.type];
  if (kind && title.endsWith(`: ${kind.title[0]}`)) title = title.slice(0, -kind.title[0].length) + kind.title[1];
  if (kind && body === kind.text[0]) body = kind.text[1];
  return [title, { body, tag, data, lang: served.language, icon: "/console/icon-192.png", badge: "/console/badge-96.png" }];
}

addEventListener("notificationclick", (event) => {
  event.notification.close();
  const id = event.notification.data?.deviceId;
  event.waitUntil(openMachine(id ? `/console/machine/${encodeURIComponent(id)}` : "/console"));
});

async function openMachine(path) {
  const open = await clients.matchAll({ type: "window", includeUncontrolled: true });
  const there = open.find(({ url }) => [path, path.replace("/console", "")].includes(new URL(url).pathname));
  return there ? there.focus() : clients.openWindow(path);
}

// The push service has ended a subscription. The cookie of the session authenticates the request for the new one.
addEventListener("pushsubscriptionchange", (event) => {
  event.waitUntil((async () => {
    const options = event.oldSubscription?.options;
    if (!options) return;
    const subscription = event.newSubscription ?? (await registration.pushManager.subscribe(options));
    const body = JSON.stringify({ subscription });
    await fetch("/api/push/subscribe", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  })());
});
