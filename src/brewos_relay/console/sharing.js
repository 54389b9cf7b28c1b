// Sharing the machine: a new link with its QR code and short code, and the list of valid links.

import { askSignedIn } from "./api.js";
import { byId, clock, make, tell, whenAsked } from "./page.js";

/** Set up sharing for an owner. */
export async function startSharing(deviceId, problem) {
  const path = `/api/devices/${deviceId}`;
  let url = "";

  async function refresh() {
    const { shares } = await askSignedIn("GET", `${path}/shares`);
    byId("shares").replaceChildren(...shares.map(row));
    byId("shares").hidden = shares.length === 0;
  }

  function row({ shareId, role, until, expiresAt, usesLeft }) {
    const more = [until && `access until ${clock(until)}`, usesLeft !== null && `${usesLeft} left`, `link valid until ${clock(expiresAt)}`];
    const revoke = make("button", "quiet small", "Revoke");
    revoke.setAttribute("aria-label", `Revoke the link for a ${role}`);
    whenAsked(revoke, problem, async () => {
      await askSignedIn("DELETE", `${path}/shares/${encodeURIComponent(shareId)}`);
      byId("shared").hidden = true;
      await refresh();
    });
    return make("li", "", [make("div", "what", [`For a ${role} `, make("span", "more", more.filter(Boolean).join(" · "))]), revoke]);
  }

  whenAsked(byId("share"), problem, async () => {
    const forMs = Number(byId("share-for").value);
    const made = await askSignedIn("POST", `${path}/share`, {
      role: byId("share-role").value,
      ...(forMs && { until: Date.now() + forMs }),
    });
    url = made.url;
    byId("share-qr").src = picture(made.qr);
    tell(byId("share-code"), made.manualCode);
    tell(byId("share-copy"), "Copy link");
    byId("shared").hidden = false;
    await refresh();
  });

  whenAsked(byId("share-copy"), problem, async () => {
    await navigator.clipboard.writeText(url);
    tell(byId("share-copy"), "Copied");
  });
  // Browsers offer the clipboard only over TLS.
  byId("share-copy").hidden = !navigator.clipboard;

  byId("sharing").hidden = false;
  await refresh();
}

/** Convert an inline SVG to a data URL. */
function picture(svg) {
  const space = document.querySelector("svg").namespaceURI;
  const whole = svg.includes("xmlns=") ? svg : svg.replace("<svg", `<svg xmlns="${space}"`);
  return `data:image/svg+xml,${encodeURIComponent(whole)}`;
}
