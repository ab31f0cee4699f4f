//! The chat servers as browsers and libraries meet them: over real sockets.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, where a panic is the report"
)]
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use wsgate_demo::ChatServers;

const DEADLINE: Duration = Duration::from_secs(10);

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    welcome: Value,
}

impl Client {
    async fn join(server: SocketAddr) -> Self {
        let (socket, _) = connect_async(format!("ws://{server}/chat")).await.unwrap();
        let welcome = Value::Null;
        let mut client = Self { socket, welcome };
        client.welcome = client.next("welcome").await;
        client
    }

    async fn send(&mut self, message: impl Into<Message>) {
        self.socket.send(message.into()).await.unwrap();
    }

    async fn say(&mut self, text: &str) {
        let say = json!({"type": "say", "text": text});
        self.send(say.to_string()).await;
    }

    /// The next message of this kind, past any others.
    async fn next(&mut self, kind: &str) -> Value {
        let found = async {
            loop {
                let message = self.socket.next().await.unwrap().unwrap();
                if let Message::Text(text) = message {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    if value["type"] == kind {
                        return value;
                    }
                }
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("no {kind} came"))
    }

    async fn close_code(&mut self) -> CloseCode {
        let closed = async {
            loop {
                if let Message::Close(frame) = self.socket.next().await.unwrap().unwrap() {
                    return frame.unwrap().code;
                }
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.unwrap()
    }
}

fn two_servers() -> (ChatServers, SocketAddr, SocketAddr) {
    let servers = wsgate_demo::start(&["chat-a", "chat-b"]).unwrap();
    let [(_, a), (_, b)] = *servers.addresses() else {
        panic!("two servers");
    };
    (servers, a, b)
}

async fn request(server: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request = format!("{head}\r\nHost: demo\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn members_of_two_servers_hear_each_other() {
    let (_servers, a, b) = two_servers();
    let mut ada = Client::join(a).await;
    let mut bob = Client::join(b).await;
    assert_eq!(ada.welcome["server"], "chat-a");
    assert_eq!(ada.welcome["members"], 1);
    assert_eq!(bob.welcome["server"], "chat-b");
    assert_eq!(bob.welcome["members"], 2);
    assert_ne!(ada.welcome["you"], bob.welcome["you"]);

    ada.say("hello").await;
    for client in [&mut ada, &mut bob] {
        let said = client.next("said").await;
        assert_eq!(said["text"], "hello");
        assert_eq!(said["server"], "chat-a");
    }
    bob.say("welcome, \u{1F44B}\n").await;
    let said = ada.next("said").await;
    assert_eq!(said["text"], "welcome, \u{1F44B}\n");
    assert_eq!(said["from"], bob.welcome["you"]);
    assert_eq!(said["member"], bob.welcome["member"]);
    assert!(said["at"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn everybody_learns_how_many_there_are() {
    let (_servers, a, b) = two_servers();
    let mut ada = Client::join(a).await;
    let mut bob = Client::join(b).await;
    assert_eq!(ada.next("members").await["count"], 2);
    bob.socket.close(None).await.unwrap();
    assert_eq!(ada.next("members").await["count"], 1);
    let cut_off = Client::join(b).await;
    assert_eq!(ada.next("members").await["count"], 2);
    drop(cut_off);
    assert_eq!(ada.next("members").await["count"], 1);
}

#[tokio::test]
async fn a_new_name_goes_with_the_next_message() {
    let (_servers, a, _) = two_servers();
    let mut ada = Client::join(a).await;
    ada.send(r#"{"type":"rename","name":"Ada"}"#).await;
    assert_eq!(ada.next("renamed").await["you"], "Ada");
    ada.say("it is me").await;
    assert_eq!(ada.next("said").await["from"], "Ada");
}

#[tokio::test]
async fn what_cannot_be_accepted_is_answered_and_the_socket_lives_on() {
    let (_servers, a, _) = two_servers();
    let mut ada = Client::join(a).await;
    let hostile = [
        Message::from("no JSON"),
        Message::from(""),
        Message::from("[]"),
        Message::from(r#"{"type":"shout"}"#),
        Message::from(r#"{"type":"say","text":7}"#),
        Message::from(r#"{"type":"say","text":"\ud800"}"#),
        Message::from(r#"{"type":"rename","name":" "}"#),
        Message::from("[".repeat(900_000)),
        Message::from(vec![0, 159, 146, 150]),
        Message::from(json!({"type": "say", "text": "x".repeat(2_001)}).to_string()),
    ];
    for message in hostile {
        ada.send(message).await;
        let error = ada.next("error").await;
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    ada.send(r#"{"type":"ping","id":7}"#).await;
    assert_eq!(ada.next("pong").await["id"], 7);
    let longest = "ü".repeat(2_000);
    ada.say(&longest).await;
    assert_eq!(ada.next("said").await["text"], longest);
}

#[tokio::test]
async fn a_message_too_big_to_read_closes_that_socket_only() {
    let (_servers, a, b) = two_servers();
    let mut ada = Client::join(a).await;
    let mut bob = Client::join(b).await;
    let big = Message::from("x".repeat((1 << 20) + 1));
    bob.send(big).await;
    let code = bob.close_code().await;
    assert_eq!(code, CloseCode::Size);
    ada.say("still here").await;
    assert_eq!(ada.next("said").await["text"], "still here");
}

#[tokio::test]
async fn a_burst_arrives_whole_and_in_order() {
    let (_servers, a, b) = two_servers();
    let mut ada = Client::join(a).await;
    let mut bob = Client::join(b).await;
    for number in 0..1_000 {
        let say = json!({"type": "say", "text": number.to_string()});
        ada.socket.feed(say.to_string().into()).await.unwrap();
    }
    ada.socket.flush().await.unwrap();
    for number in 0..1_000 {
        assert_eq!(bob.next("said").await["text"], number.to_string());
    }
}

#[tokio::test]
async fn the_page_is_served_whole_and_never_cached() {
    let (_servers, a, _) = two_servers();
    let answer = request(a, "GET / HTTP/1.1").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.contains("content-type: text/html; charset=utf-8"),
        "{head}"
    );
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(body.starts_with("<!doctype html>") && body.trim_end().ends_with("</html>"));
    for id in [
        "status",
        "since",
        "server",
        "socket-number",
        "reconnects",
        "log",
        "text",
        "send",
    ] {
        assert!(body.contains(&format!("id=\"{id}\"")), "#{id} is missing");
    }
}

#[tokio::test]
async fn other_requests_are_refused_by_their_right_status() {
    let (_servers, a, _) = two_servers();
    for (request_line, status) in [
        ("GET /nothing HTTP/1.1", "404"),
        ("POST / HTTP/1.1", "405"),
        ("POST /chat HTTP/1.1", "405"),
        ("GET /chat HTTP/1.1", "426"),
        ("HEAD / HTTP/1.1", "200"),
    ] {
        let answer = request(a, request_line).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request_line}");
    }
}

#[tokio::test]
async fn dropping_the_servers_ends_them() {
    let (servers, a, _) = two_servers();
    let mut ada = Client::join(a).await;
    drop(servers);
    let ended = tokio::time::timeout(DEADLINE, ada.socket.next())
        .await
        .unwrap();
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    let error = TcpStream::connect(a).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
