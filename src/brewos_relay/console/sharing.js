// Sharing the machine: a new link with its QR code and short code, and the list of valid links.

import { sendSignedIn } from "./api.js";
import { byId, copyField, createElement, onAction, setText } from "./dom.js";
import { clockTime } from "./format.js";
import { roleName, text } from "./texts.js";

/** Set up sharing for an owner. An administrator may share with a person who has no account. */
export async function startSharing(deviceId, problem) {
  const path = `/api/devices/${deviceId}`;
  async function refresh() {
    const { shares } = await sendSignedIn("GET", `${path}/shares`);
    byId("shares").replaceChildren(...shares.map(row));
    byId("shares").hidden = shares.length === 0;
  }

  function row({ shareId, role, until, expiresAt, usesLeft }) {
    const more = [until && text("share.access-until", { time: clockTime(until) }), usesLeft !== null && text("share.left", { count: usesLeft }), text("share.valid-until", { time: clockTime(expiresAt) })];
    const revoke = createElement("button", "quiet small bad", text("token.revoke"));
    revoke.setAttribute("aria-label", text("share.revoke", { role: roleName(role) }));
    onAction(revoke, problem, async () => {
      await sendSignedIn("DELETE", `${path}/shares/${encodeURIComponent(shareId)}`);
      byId("shared").hidden = true;
      await refresh();
    });
    return createElement("li", "", [createElement("div", "what", [text("share.for-role", { role: roleName(role) }), " ", createElement("span", "more", more.filter(Boolean).join(" · "))]), revoke]);
  }

  onAction(byId("share"), problem, async () => {
    const forMs = Number(byId("share-for").value);
    const email = byId("share-email").value.trim();
    const invite = email && (await sendSignedIn("POST", "/api/admin/invites", { email }));
    const made = await sendSignedIn("POST", `${path}/share`, {
      role: byId("share-role").value,
      ...(forMs && { until: Date.now() + forMs }),
      ...(invite && { uses: 1 }),
    });
    // The page for signing in takes the share from the link, and offers it after the sign-in.
    byId("share-url").value = invite ? `${invite.url}&${new URLSearchParams({ device: deviceId, share: made.token })}` : made.url;
    for (const id of ["share-qr", "share-code"]) byId(id).hidden = Boolean(invite);
    byId("share-qr").src = picture(made.qr);
    setText(byId("share-code"), made.manualCode);
    setText(byId("share-about"), invite ? text("share.invited", { email: invite.email }) : text("share.explained"));
    byId("share-email").value = "";
    setText(byId("share-copy"), text("share.copy"));
    byId("shared").hidden = false;
    await refresh();
  });

  onAction(byId("share-copy"), problem, async () => {
    await copyField(byId("share-url"), byId("share-copy"));
  });

  byId("sharing").hidden = false;
  await refresh();
}

/** Offer an administrator to share with a person who has no account. */
export function offerInvites() {
  for (const part of [byId("share-email"), ...byId("share-email").labels]) part.hidden = false;
}

/** Convert an inline SVG to a data URL. */
function picture(svg) {
  const space = document.querySelector("svg").namespaceURI;
  const whole = svg.includes("xmlns=") ? svg : svg.replace("<svg", `<svg xmlns="${space}"`);
  return `data:image/svg+xml,${encodeURIComponent(whole)}`;
}
