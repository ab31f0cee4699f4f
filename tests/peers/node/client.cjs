// A client on the library `ws`: client.cjs URL.
//
// Tries everything that a tunnel has to carry, and prints what it met as one line of JSON.
// Anything that is not as it should be ends it with an error.
'use strict';

const assert = require('node:assert');
const crypto = require('node:crypto');
const { once } = require('node:events');
const WebSocket = require('ws');

const URL = process.argv[2];
const LENGTHS = [0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20];
const LIMIT = { signal: AbortSignal.timeout(60_000) };

// Bytes that no compression makes smaller.
const noise = length =>
  crypto.createHash('shake256', { outputLength: Math.max(length, 1) }).update('noise').digest().subarray(0, length);

async function open(path = '/', protocols = []) {
  const socket = new WebSocket(URL + path, protocols, { maxPayload: 0, perMessageDeflate: { threshold: 0 } });
  await once(socket, 'open', LIMIT);
  return socket;
}

async function receive(socket) {
  const [data, binary] = await once(socket, 'message', LIMIT);
  return binary ? data : data.toString();
}

async function same(socket, message) {
  const back = receive(socket);
  socket.send(message);
  assert.deepStrictEqual(await back, message, `${message.length} came back wrong`);
  return message.length;
}

async function messages(met) {
  const socket = await open('/', ['chat.v1', 'chat.v2']);
  met.subprotocol = socket.protocol;
  met.deflate = socket.extensions.includes('permessage-deflate');
  met.bytes = 0;
  for (const length of LENGTHS) {
    met.bytes += await same(socket, 'über '.repeat(Math.floor(length / 6)));
    met.bytes += await same(socket, noise(length));
  }
  socket.close();
  await once(socket, 'close', LIMIT);
}

async function fragments() {
  const socket = await open();
  const parts = ['frag', '', 'men', 'ted ✓'];
  const text = receive(socket);
  parts.forEach((part, index) => socket.send(part, { fin: index === parts.length - 1 }));
  assert.strictEqual(await text, parts.join(''));
  const binary = receive(socket);
  for (const fin of [false, false, true]) socket.send(noise(70_000), { fin });
  assert.deepStrictEqual(await binary, Buffer.concat(Array(3).fill(noise(70_000))));
  socket.close();
  await once(socket, 'close', LIMIT);
}

async function pings() {
  const socket = await open();
  for (const payload of [Buffer.alloc(0), Buffer.from('x'), noise(125)]) {
    const pong = once(socket, 'pong', LIMIT);
    socket.ping(payload);
    assert.deepStrictEqual((await pong)[0], payload);
  }
  socket.close();
  await once(socket, 'close', LIMIT);
}

async function closes(met) {
  let socket = await open();
  await same(socket, 'hello');
  socket.close(4001, 'bye from the client');
  await once(socket, 'close', LIMIT);
  socket = await open('/close/4002/bye-from-the-server');
  const closed = once(socket, 'close', LIMIT);
  await same(socket, 'hello');
  const [code, reason] = await closed;
  met.closed = [code, reason.toString()];
}

async function main() {
  const met = {};
  await messages(met);
  await fragments();
  await pings();
  await closes(met);
  console.log(JSON.stringify(met));
}

main().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
