//! Two gateways of one process with one board, the server behind them, tunnels through the first, and the words that
//! either side of a handover hears.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use wsgate_config::Sources;
use wsgate_os::board::Board;
use wsgate_os::channel::Channel;
use wsgate_protocol::board::Cell;
use wsgate_protocol::control::{FromWorker, Refusal, Stays};
use wsgate_proxy::{Acceptor, Gateway, Ledger, Listening, Settings};

use crate::handover::{GiveOrder, Giving, TakeOrder, Taking};
use crate::ledger::BoardLedger;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// The key of RFC 6455 section 1.3, and the answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A text message, without a mask: peers may say what they like.
const OK: &[u8] = b"\x81\x02ok";

/// As it stands in the configuration; the test binds a port of its own.
const LISTENER: &str = "127.0.0.1:0";

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// Waits for a state that another task brings about.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What one worker has of it.
pub(super) struct Worker {
    pub(super) gateway: Arc<Gateway>,
    pub(super) ledger: Arc<BoardLedger>,
    board: Board,
    block: usize,
}

impl Worker {
    fn new(board: &Board, block: usize, config: &str, tunnels_here: u64) -> Self {
        board.claim(block);
        let ledger = Arc::new(BoardLedger::new(board.clone(), block));
        let sources = Sources::from_text("wsgate.toml", config);
        let config = wsgate_config::parse(sources).unwrap().config;
        let gateway = Gateway::new(Settings {
            config: Arc::new(config),
            id_prefix: format!("t-{block}"),
            tunnels_here,
            connections_here: 1000,
            ledger: ledger.clone(),
            states: Vec::new(),
        });
        Self {
            gateway,
            ledger,
            board: board.clone(),
            block,
        }
    }

    pub(super) fn count(&self, cell: Cell) -> u64 {
        let cell = self.board.general(self.block, cell.index());
        cell.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn tunnels(&self) -> usize {
        self.gateway.tunnels().len()
    }
}

/// The two workers, and the server behind both.
pub(super) struct Rig {
    pub(super) old: Worker,
    pub(super) new: Worker,
    address: SocketAddr,
    server: TcpListener,
    short: bool,
    acceptors: Vec<Acceptor>,
    /// What further workers are made of.
    board: Board,
    config: String,
}

/// What a rig may have otherwise.
pub(super) struct Wish {
    /// The most tunnels that the new worker holds.
    pub(super) room: u64,
    /// The kernel takes little for peers that do not read.
    pub(super) short: bool,
    /// Further lines of the configuration, before its tables.
    pub(super) limits: &'static str,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            room: 1000,
            short: false,
            limits: "",
        }
    }
}

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(Wish::default()).await
    }

    pub(super) async fn with(wish: Wish) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if wish.short {
            shorten(SockRef::from(&server));
        }
        let at = server.local_addr().unwrap();
        let config = config(wish.limits, LISTENER, &at.to_string());
        let (board, _) = Board::create().unwrap();
        let old = Worker::new(&board, 0, &config, 1000);
        let new = Worker::new(&board, 1, &config, wish.room);
        let (address, acceptor) = open(&old);
        Self {
            old,
            new,
            address,
            server,
            short: wish.short,
            acceptors: vec![acceptor],
            board,
            config,
        }
    }

    /// Another one takes the old one's place, and its clients from now on.
    pub(super) fn another_old(&mut self, block: usize) -> Worker {
        let another = Worker::new(&self.board, block, &self.config, 1000);
        let (address, acceptor) = open(&another);
        self.address = address;
        self.acceptors.push(acceptor);
        std::mem::replace(&mut self.old, another)
    }

    /// Clients come to the new one from now on.
    pub(super) fn clients_to_new(&mut self) {
        let (address, acceptor) = open(&self.new);
        self.address = address;
        self.acceptors.push(acceptor);
    }

    /// A client for which there is no place. The first line of the answer.
    pub(super) async fn turned_away(&self) -> String {
        let client = TcpSocket::new_v4().unwrap();
        let client = client.connect(self.address).await.unwrap();
        let mut client = Peer(Box::new(client));
        client.say(handshake(0).as_bytes()).await;
        let head = client.head(1).await;
        head.lines().next().unwrap().to_owned()
    }

    /// A tunnel through the old one. `says` is what its peers send in one go with their handshakes, and `padding` makes
    /// the client's longer.
    pub(super) async fn tunnel_that(&self, says: [&[u8]; 2], padding: usize) -> Tunnel {
        let socket = TcpSocket::new_v4().unwrap();
        if self.short {
            shorten(SockRef::from(&socket));
        }
        let client = socket.connect(self.address).await.unwrap();
        let server = async { self.server.accept().await.unwrap().0 };
        Tunnel::meet(client, server, says, padding).await
    }

    pub(super) async fn tunnel(&self) -> Tunnel {
        self.tunnel_that([b"", b""], 0).await
    }

    pub(super) async fn tunnels(&self, count: usize) -> Vec<Tunnel> {
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.push(self.tunnel().await);
        }
        self.settled(count).await;
        tunnels
    }

    /// Waits until so many tunnels of the old one can move.
    pub(super) async fn settled(&self, count: usize) {
        let gateway = &self.old.gateway;
        until(|| {
            let tunnels = gateway.tunnels();
            tunnels.len() == count && tunnels.iter().all(|record| record.relaying())
        })
        .await;
    }

    pub(super) fn giving(&self, channel: OwnedFd, before: Option<Giving>) -> Given {
        let (reports, heard) = mpsc::unbounded_channel();
        let order = GiveOrder {
            handover: 7,
            to: 1,
            slot: 0,
            gateway: Arc::clone(&self.old.gateway),
            reports,
        };
        let giving = Giving::begin(order, Channel::from_fd(channel).unwrap(), before);
        Given {
            giving: Some(giving),
            heard,
        }
    }

    pub(super) fn taking(&self, channel: OwnedFd) -> Taken {
        self.taking_at(Channel::from_fd(channel).unwrap())
    }

    fn taking_at(&self, channel: Channel) -> Taken {
        let (reports, heard) = mpsc::unbounded_channel();
        let order = TakeOrder {
            handover: 7,
            from: 1,
            slot: 0,
            grace: LONG,
            gateway: Arc::clone(&self.new.gateway),
            reports,
        };
        let taking = Taking::begin(order, channel);
        Taken { taking, heard }
    }

    /// The old one gives to the new one.
    pub(super) fn pair(&self) -> (Given, Taken) {
        let (channel, theirs) = Channel::pair().unwrap();
        let given = self.giving(theirs, None);
        let taken = self.taking_at(channel);
        (given, taken)
    }

    /// The old and the new one have so many tunnels, and nobody else sees one twice or never.
    pub(super) fn assert_holds(&self, old: usize, new: usize) {
        assert_eq!((self.old.tunnels(), self.new.tunnels()), (old, new));
        for worker in [&self.old, &self.new] {
            assert_eq!(worker.count(Cell::Tunnels), worker.tunnels() as u64);
        }
        assert_eq!(self.old.ledger.tunnels(), (old + new) as u64);
    }
}

/// Lets clients in.
fn open(worker: &Worker) -> (SocketAddr, Acceptor) {
    let front = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    let acceptor = worker.gateway.accept(LISTENER, Listening::Tcp(front));
    (address, acceptor.unwrap())
}

/// What a client says first.
fn handshake(padding: usize) -> String {
    let padding = "x".repeat(padding);
    format!(
        "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nX-Padding: {padding}\r\n\r\n"
    )
}

fn config(limits: &str, listener: &str, server: &str) -> String {
    format!(
        "{limits}\n[[listener]]\naddress = \"{listener}\"\n[[route]]\nupstream = \"up\"\n[upstream.up]\nservers = [\"{server}\"]\n"
    )
}

/// The smallest segment (RFC 9293 section 3.7.1) for what is sent to it, and a small buffer; connections inherit both.
fn shorten(socket: SockRef<'_>) {
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
}

/// A rig whose sockets are all of the other kind.
pub(super) struct UnixRig {
    pub(super) rig: Rig,
    front: std::path::PathBuf,
    server: UnixListener,
    _unix_acceptor: Acceptor,
}

impl UnixRig {
    pub(super) async fn new(dir: &Path) -> Self {
        let (front, back) = (dir.join("front.sock"), dir.join("back.sock"));
        let server = UnixListener::bind(&back).unwrap();
        let listener = format!("unix:{}", front.display());
        let config = config("", &listener, &format!("unix:{}", back.display()));
        let mut rig = Rig::new().await;
        let (board, _) = Board::create().unwrap();
        rig.old = Worker::new(&board, 0, &config, 1000);
        rig.new = Worker::new(&board, 1, &config, 1000);
        let socket = std::os::unix::net::UnixListener::bind(&front).unwrap();
        let acceptor = rig.old.gateway.accept(&listener, Listening::Unix(socket));
        Self {
            rig,
            front,
            server,
            _unix_acceptor: acceptor.unwrap(),
        }
    }

    pub(super) async fn tunnel(&self) -> Tunnel {
        let client = UnixStream::connect(&self.front).await.unwrap();
        let server = async { self.server.accept().await.unwrap().0 };
        Tunnel::meet(client, server, [b"", b""], 0).await
    }
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One end of a tunnel, in the test's hands.
pub(super) struct Peer(pub(super) Box<dyn Stream>);

/// Both ends.
pub(super) struct Tunnel {
    pub(super) client: Peer,
    pub(super) server: Peer,
}

impl Tunnel {
    async fn meet<S: Stream + 'static>(
        client: S,
        server: impl Future<Output = S>,
        [client_says, server_says]: [&[u8]; 2],
        padding: usize,
    ) -> Self {
        let mut client = Peer(Box::new(client));
        let head = handshake(padding);
        let words = [head.as_bytes(), client_says].concat();
        let (said, server) = tokio::join!(client.0.write_all(&words), within(server));
        said.unwrap();
        let mut server = Peer(Box::new(server));
        // Nothing follows it before there is an answer.
        server.head(4096).await;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        );
        server.say(&[head.as_bytes(), server_says].concat()).await;
        let head = client.head(1).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { client, server }
    }

    /// Both directions work.
    pub(super) async fn works(&mut self) {
        let Self { client, server } = self;
        client.say(OK).await;
        assert_eq!(server.hear(OK.len()).await, OK);
        server.say(OK).await;
        assert_eq!(client.hear(OK.len()).await, OK);
    }
}

impl Peer {
    pub(super) async fn say(&mut self, bytes: &[u8]) {
        within(self.0.write_all(bytes)).await.unwrap();
    }

    pub(super) async fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within(self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// All to the end.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        within(self.0.read_to_end(&mut bytes)).await.unwrap();
        bytes
    }

    /// Read in such pieces: what follows it is the test's.
    async fn head(&mut self, piece: usize) -> String {
        let (mut head, mut buffer) = (Vec::new(), vec![0; piece]);
        while !head.ends_with(b"\r\n\r\n") {
            let read = within(self.0.read(&mut buffer)).await.unwrap();
            assert!(read > 0, "the end after {head:?}");
            head.extend(&buffer[..read]);
        }
        String::from_utf8(head).unwrap()
    }
}

pub(super) async fn all_work(tunnels: &mut [Tunnel]) {
    for tunnel in tunnels {
        tunnel.works().await;
    }
}

/// A giver at work.
pub(super) struct Given {
    /// Until another one takes its place.
    pub(super) giving: Option<Giving>,
    heard: UnboundedReceiver<FromWorker>,
}

/// What a giver has told.
#[derive(Debug, PartialEq)]
pub(super) struct Report {
    pub(super) moved: u64,
    pub(super) stays: Vec<(Stays, u64)>,
    pub(super) broken: Option<Refusal>,
}

impl Given {
    pub(super) fn stop(&self) {
        self.giving.as_ref().unwrap().stop();
    }

    pub(super) async fn report(&mut self) -> Report {
        match within(self.heard.recv()).await.unwrap() {
            FromWorker::HandedOver {
                moved,
                stays,
                broken,
                ..
            } => Report {
                moved,
                stays: stays.iter().map(|it| (it.reason, it.tunnels)).collect(),
                broken,
            },
            other => panic!("a giver says {other:?}"),
        }
    }

    /// It is over, for this reason, and these tunnels stay for it.
    pub(super) async fn breaks(&mut self, moved: u64, broken: Refusal, stay: u64) {
        let stays = match stay {
            0 => Vec::new(),
            _ => vec![(Stays::Refused(broken), stay)],
        };
        let expected = Report {
            moved,
            stays,
            broken: Some(broken),
        };
        assert_eq!(self.report().await, expected);
    }
}

/// A taker at work.
pub(super) struct Taken {
    pub(super) taking: Taking,
    heard: UnboundedReceiver<FromWorker>,
}

impl Taken {
    /// How many tunnels it has kept since the last report, and whether it is over.
    pub(super) async fn report(&mut self) -> (u64, bool) {
        match within(self.heard.recv()).await.unwrap() {
            FromWorker::TookOver { fates, over, .. } => (fates.kept, over),
            other => panic!("a taker says {other:?}"),
        }
    }
}
