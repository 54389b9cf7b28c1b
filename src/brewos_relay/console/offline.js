// The page that the service worker shows, at the URL of another page, while the server cannot be reached.

const LOOK_MS = 2000;
const reload = () => location.reload();

async function look() {
  const answer = document.hidden ? null : await fetch("/livez", { cache: "no-store" }).catch(() => null);
  if (answer?.ok) reload();
  else setTimeout(look, LOOK_MS);
}

document.getElementById("again").addEventListener("click", reload);
addEventListener("online", reload);
if (location.pathname !== "/console/offline") setTimeout(look, LOOK_MS);
