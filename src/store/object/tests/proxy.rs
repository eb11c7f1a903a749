//! A proxy between the store and a server that answers, cuts, loses and delays as told.
//!
//! One request a connection towards the server; the store's side is closed after each reply.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a request.
#[derive(Clone)]
pub(super) enum Act {
    /// The server never sees it.
    Answer(String),
    /// The server does its work; the store never hears of it.
    LoseReply,
    /// The connection ends after so many bytes of the body.
    CutBody(usize),
    /// The reply ends after so many bytes.
    CutReply(usize),
    /// Nothing comes back for so long; then the connection ends.
    Hang(Duration),
    /// The request goes on after this time.
    Delay(Duration),
    /// 200, with the mark of the upload seen last and these headers; no body.
    Echo(String),
}

/// A reply with status, more headers (each with its line's end) and a body.
pub(super) fn answer(status: u16, headers: &str, body: &str) -> Act {
    Act::Answer(format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}connection: close\r\n\r\n{body}",
        body.len()
    ))
}

/// S3's form of a refusal.
pub(super) fn refuse(status: u16, code: &str) -> Act {
    let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
    answer(status, "", &body)
}

struct Rule {
    /// Beginning of the first line, and a piece of it.
    method: String,
    piece: String,
    times: usize,
    act: Act,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    heads: Vec<String>,
}

impl State {
    /// Notes a request, and what is to happen to it.
    fn act_for(&mut self, head: &str) -> Option<Act> {
        self.heads.push(head.to_owned());
        let line = head.lines().next().unwrap_or_default();
        let fits = |rule: &&mut Rule| {
            rule.times > 0 && line.starts_with(&rule.method) && line.contains(&rule.piece)
        };
        let rule = self.rules.iter_mut().find(fits)?;
        rule.times -= 1;
        Some(rule.act.clone())
    }

    /// The header that marked the last new object.
    fn last_mark(&self) -> String {
        let marked = |head: &String| {
            let mut lines = head.lines();
            let line = lines.rfind(|line| line.starts_with("x-amz-meta-"));
            line.map(str::to_owned)
        };
        self.heads.iter().rev().find_map(marked).unwrap_or_default()
    }
}

pub(super) struct Proxy {
    pub(super) port: u16,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub(super) fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // Ends with the process: nothing waits for it.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, server, &state));
            }
        });
        Proxy { port, state }
    }

    /// The next `times` requests of this method whose first line holds `piece` meet this.
    pub(super) fn when(&self, method: &str, piece: &str, times: usize, act: Act) {
        self.state.lock().unwrap().rules.push(Rule {
            method: format!("{method} "),
            piece: piece.to_owned(),
            times,
            act,
        });
    }

    /// No more tricks.
    pub(super) fn behave(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// The heads of the requests so far.
    pub(super) fn heads(&self) -> Vec<String> {
        self.state.lock().unwrap().heads.clone()
    }

    /// How many requests of this method had this piece in their first line.
    pub(super) fn count(&self, method: &str, piece: &str) -> usize {
        let fits = |head: &&String| {
            let line = head.lines().next().unwrap_or_default();
            line.starts_with(&format!("{method} ")) && line.contains(piece)
        };
        self.heads().iter().filter(fits).count()
    }
}

fn serve(mut client: TcpStream, server: u16, state: &Mutex<State>) {
    let Some((head, mut body)) = read_head(&mut client) else {
        return;
    };
    let act = state.lock().unwrap().act_for(&head);
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0_usize);
    let wanted = match act {
        Some(Act::CutBody(most)) => most.min(length),
        _ => length,
    };
    let mut rest = vec![0; wanted.saturating_sub(body.len())];
    if client.read_exact(&mut rest).is_err() {
        return;
    }
    body.extend(rest);
    match act {
        Some(Act::Answer(reply)) => {
            let _ = client.write_all(reply.as_bytes());
        }
        Some(Act::CutBody(_)) => {}
        Some(Act::Hang(time)) => std::thread::sleep(time),
        Some(Act::LoseReply) => {
            forward(server, &head, &body);
        }
        Some(Act::CutReply(most)) => {
            let reply = forward(server, &head, &body);
            let _ = client.write_all(&reply[..most.min(reply.len())]);
        }
        Some(Act::Echo(headers)) => {
            let mark = state.lock().unwrap().last_mark();
            let reply = format!("HTTP/1.1 200 X\r\n{headers}{mark}\r\nconnection: close\r\n\r\n");
            let _ = client.write_all(reply.as_bytes());
        }
        Some(Act::Delay(time)) => {
            std::thread::sleep(time);
            let _ = client.write_all(&forward(server, &head, &body));
        }
        None => {
            let _ = client.write_all(&forward(server, &head, &body));
        }
    }
}

/// The head with its empty line, and what came of the body with it.
fn read_head(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Some((String::from_utf8(bytes).ok()?, body));
        }
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn forward(server: u16, head: &str, body: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    let mut ask = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", server))?;
        let head = head.trim_end();
        stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes())?;
        stream.write_all(body)?;
        stream.read_to_end(&mut reply)?;
        Ok(())
    };
    // A server that refuses early may reset; what it said counts.
    let _ = ask();
    reply
}
