// Fetch from a relay and talk to a machine through it, with Node's fetch and `ws`.
// Arguments: the relay's URL, a token, a device, the folder with node_modules.
import { createRequire } from "node:module";

const [base, token, device, folder] = process.argv.slice(2);
const WebSocket = createRequire(`${folder}/client.js`)("ws");

const get = await fetch(`${base}/api/health`);
await get.text();
const post = await fetch(`${base}/api/auth/refresh`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: '{"refreshToken":"x"}',
});
await post.text();

const socket = new WebSocket(`${base.replace(/^http/, "ws")}/ws/client?token=${token}&device=${device}`);
const texts = [];
socket.on("message", (data) => {
  const message = JSON.parse(data.toString());
  texts.push(message.type);
  if (message.type === "connected") socket.send('{"type":"command","cmd":"tare"}');
  if (message.type === "log") socket.close(1000);
});
const code = await new Promise((resolve, reject) => {
  socket.on("close", resolve);
  socket.on("error", reject);
});
const seen = { get: get.status, post: post.status, first: texts[0], last: texts.at(-1), close: code };
console.log(JSON.stringify(seen));
