// An echo server on the library `ws`.
//
// Prints `port N` when it listens, and `closed CODE REASON` for each close that a client began.
// A client that asks for /close/CODE/REASON is closed so after its first message.
'use strict';

const { WebSocketServer } = require('ws');

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  maxPayload: 0,
  perMessageDeflate: { threshold: 0 },
  handleProtocols: protocols => (protocols.has('chat.v2') ? 'chat.v2' : false),
});

server.on('listening', () => console.log('port', server.address().port));
server.on('connection', (socket, request) => {
  const [, ...close] = request.url.split('/').filter(part => part);
  socket.on('message', (data, binary) => {
    socket.send(data, { binary });
    if (close.length) socket.close(Number(close[0]), close[1]);
  });
  socket.on('close', (code, reason) => console.log('closed', code, reason.toString()));
  socket.on('error', error => console.error(error));
});
