//! Plays a session to PostgreSQL and to the proxy, and says where the answers part.

use std::fmt::Write as _;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::conversation::{Ending, Session, mark};
use super::rest::Rest;
use crate::wire::{Frame, Wire};

/// What came back.
#[derive(Default)]
pub struct Played {
    pub frames: Vec<Frame>,
    /// Frames that had come when the client read on, step by step.
    pauses: Vec<usize>,
    /// What was owed did not come.
    pub hangs: bool,
    /// The connection was closed before the end.
    closed: bool,
    /// For a while it could not be told how much was owed: a COPY failed among Syncs.
    pub lost: bool,
}

/// How long to wait for what is owed. Only a test that fails waits so long.
#[derive(Clone, Copy)]
pub struct Patience(pub Duration);

impl Played {
    /// Reads until `enough`, the end of the stream, or out of patience.
    async fn read(
        &mut self,
        wire: &mut Wire,
        Patience(patience): Patience,
        mut enough: impl FnMut(&[Frame]) -> bool,
    ) {
        while !self.closed && !self.hangs && !enough(&self.frames) {
            match tokio::time::timeout(patience, wire.frame()).await {
                Ok(Some(frame)) => self.frames.push(frame),
                Ok(None) => self.closed = true,
                Err(_) => self.hangs = true,
            }
        }
    }

    async fn leave(&mut self, wire: &mut Wire, session: &Session, patience: Patience) {
        match session.ending {
            Ending::Mark | Ending::Drop => {}
            Ending::Terminate => self.read(wire, patience, |_| false).await,
            Ending::HalfClose | Ending::CutShort => {
                wire.shutdown().await;
                self.read(wire, patience, |_| false).await;
            }
        }
    }
}

/// Whether the answer to a mark is whole.
fn is_marked(frames: &[Frame], mark: &str) -> bool {
    let is_mark = |frame: &Frame| frame.tag == b'D' && frame.body.ends_with(mark.as_bytes());
    frames.last().is_some_and(|frame| frame.tag == b'Z')
        && frames.iter().rev().take(12).any(is_mark)
}

/// The session's steps, with a mark for an end if the client has none of its own.
fn steps(session: &Session) -> Vec<super::conversation::Step> {
    let mut steps = session.steps.clone();
    if session.ending == Ending::Mark {
        steps.push(mark(&format!("{} end", session.seed)));
    }
    steps
}

/// Plays it to PostgreSQL, which decides when there is nothing more to read.
pub async fn direct(wire: &mut Wire, session: &Session, patience: Patience) -> Played {
    let mut played = Played::default();
    let mut rest = Rest::default();
    let mut seen = 0;
    for step in steps(session) {
        let _ = wire.try_send(&step.bytes).await;
        rest.send(&step.bytes);
        if let Some(mark) = &step.mark {
            played
                .read(wire, patience, |frames| is_marked(frames, mark))
                .await;
            played.frames[seen..]
                .iter()
                .for_each(|frame| rest.receive(frame.tag));
            played.lost |= rest.lost;
            rest.found_again();
            seen = played.frames.len();
        } else if step.pause {
            let enough = |frames: &[Frame]| {
                frames[seen..]
                    .iter()
                    .for_each(|frame| rest.receive(frame.tag));
                seen = frames.len();
                rest.is_reached()
            };
            played.read(wire, patience, enough).await;
        }
        played.lost |= rest.lost;
        played.pauses.push(played.frames.len());
    }
    played.leave(wire, session, patience).await;
    played.frames[seen..]
        .iter()
        .for_each(|frame| rest.receive(frame.tag));
    played.lost |= rest.lost;
    played
}

/// Plays it to the proxy: reads where PostgreSQL had answered, and as much. Between the reads the
/// bytes go out in pieces that know nothing of messages. At each read the `thief` has its turn.
pub async fn proxied(
    wire: &mut Wire,
    session: &Session,
    expected: &Played,
    patience: Patience,
    mut thief: Option<&mut Thief>,
) -> Played {
    let mut played = Played::default();
    let mut rng = StdRng::seed_from_u64(session.seed);
    let in_pieces = rng.random_range(0..3) == 0;
    let mut unsent = Vec::new();
    for (step, count) in steps(session).iter().zip(&expected.pauses) {
        unsent.extend_from_slice(&step.bytes);
        if !step.pause {
            continue;
        }
        send(wire, &mut unsent, in_pieces.then_some(&mut rng)).await;
        played
            .read(wire, patience, |frames| {
                is_enough(frames, &expected.frames[..*count])
            })
            .await;
        if let Some(thief) = &mut thief {
            thief.steal().await;
        }
    }
    send(wire, &mut unsent, in_pieces.then_some(&mut rng)).await;
    if session.ending == Ending::Mark {
        let mark = format!("mark {} end", session.seed);
        played
            .read(wire, patience, |frames| is_marked(frames, &mark))
            .await;
    }
    played.leave(wire, session, patience).await;
    played
}

/// Whether as much came as `expected`: as many ReadyForQuery, and as much after the last. After an
/// error of a failed transaction, which may stand for more (docs/compatibility.md: "In a failed
/// transaction"), nothing comes before a Sync.
fn is_enough(frames: &[Frame], expected: &[Frame]) -> bool {
    let count = |frames: &[Frame]| {
        let mut answers = frames.split(|frame| frame.tag == b'Z').map(<[Frame]>::len);
        (
            answers.clone().count(),
            answers.next_back().unwrap_or_default(),
        )
    };
    let (ready, since) = count(frames);
    let (expected_ready, expected_since) = count(expected);
    let failed = frames.last().is_some_and(|last| last.sqlstate() == "25P02");
    ready > expected_ready || (ready == expected_ready && (failed || since >= expected_since))
}

/// A client of the same tenant that takes a server connection whenever it can, and gives it back
/// the next time: who was served by one is then served by another.
pub struct Thief {
    pub wire: Wire,
    pub holds: bool,
}

impl Thief {
    async fn steal(&mut self) {
        self.holds = !self.holds;
        let sql = if self.holds { "BEGIN" } else { "COMMIT" };
        self.wire.query(sql).await;
    }
}

async fn send(wire: &mut Wire, unsent: &mut Vec<u8>, pieces: Option<&mut StdRng>) {
    let bytes = std::mem::take(unsent);
    let mut left = &bytes[..];
    if let Some(rng) = pieces {
        while left.len() > 1 && rng.random_range(0..12) > 0 {
            let (piece, after) = left.split_at(rng.random_range(1..=left.len().min(40)));
            let _ = wire.try_send(piece).await;
            tokio::task::yield_now().await;
            left = after;
        }
    }
    let _ = wire.try_send(left).await;
}

/// Where the answers part, if they do.
pub fn difference(
    session: &Session,
    direct: &Played,
    proxied: &Played,
    exactly: bool,
) -> Option<String> {
    if session.ending == Ending::Drop {
        return None;
    }
    let expected = masked(session, direct);
    let mut seen = masked(session, proxied);
    if session.ending != Ending::Mark {
        drop_early_answers(&expected, &mut seen);
    }
    excuse_strays(&expected, &mut seen, exactly);
    excuse_stale_portals(&expected, &mut seen);
    if !exactly {
        excuse_failed_transactions(&expected, &mut seen);
    }
    let mut text = match (direct.hangs, proxied.hangs) {
        // docs/compatibility.md: "A COPY FROM STDIN that fails half-way": the answers to pgtenant's
        // own messages may be among those to the client's.
        _ if direct.lost && !exactly => return None,
        (true, _) => "PostgreSQL owes what this test waits for in vain".to_owned(),
        (false, true) => "the proxy owes an answer".to_owned(),
        _ if expected == seen => return None,
        _ => String::new(),
    };
    let at = expected
        .iter()
        .zip(&seen)
        .position(|(a, b)| a != b)
        .unwrap_or(expected.len().min(seen.len()));
    let from = at.saturating_sub(3);
    let _ = write!(text, " from message {from} on:");
    for (who, frames) in [("direct", &expected), ("proxied", &seen)] {
        let _ = write!(text, "\n  {who}");
        for frame in &frames[from.min(frames.len())..frames.len().min(at + 6)] {
            let _ = write!(text, "\n    {frame}");
        }
        let _ = write!(text, "\n    … {} in all", frames.len());
    }
    Some(text)
}

/// What may differ is made equal.
fn masked(session: &Session, played: &Played) -> Vec<Frame> {
    let mut frames = played.frames.clone();
    // docs/compatibility.md: "`pg_backend_pid()` tells the server's"; so does a
    // NotificationResponse.
    for frame in frames.iter_mut().filter(|frame| frame.tag == b'A') {
        frame.body[..4].fill(0);
    }
    // docs/compatibility.md: "A message with an impossible tag or length".
    if session
        .steps
        .last()
        .is_some_and(|step| is_refused(&step.bytes))
    {
        cut_last_words(&mut frames);
    }
    mask_places(&mut frames);
    mask_strays(&mut frames);
    frames
}

/// docs/compatibility.md: "A message that does not belong into a COPY": in a query that begins with
/// SET it ends the COPY only, and pgtenant may answer a Close itself.
fn excuse_strays(expected: &[Frame], seen: &mut Vec<Frame>, exactly: bool) {
    let sync_was_lost = |frame: &Frame| {
        frame
            .field(b'M')
            .is_some_and(|text| text.ends_with("protocol synchronization was lost"))
    };
    let text = |frame: &Frame| frame.field(b'M').unwrap_or_default();
    let failed = |frame: &Frame| text(frame) == "COPY from stdin failed: unexpected message";
    if !expected.last().is_some_and(sync_was_lost) {
        return;
    }
    let before = expected.len().saturating_sub(2);
    if seen.iter().any(failed) || (!exactly && seen.starts_with(&expected[..before])) {
        *seen = expected.to_vec();
    }
}

/// docs/compatibility.md: "In a failed transaction": what else is wrong with a statement that has
/// to be prepared anew there, the server does not say.
fn excuse_failed_transactions(expected: &[Frame], seen: &mut Vec<Frame>) {
    let is_ready = |frame: &Frame| frame.tag == b'Z';
    let mut failed = false;
    let mut answers = expected.split_inclusive(is_ready);
    let excused = seen.split_inclusive(is_ready).flat_map(|answer| {
        let direct = answers.next().unwrap_or_default();
        let is_excused = failed
            && answer.iter().any(|frame| frame.sqlstate() == "25P02")
            && direct.last().filter(|last| is_ready(last))
                == answer.last().filter(|last| is_ready(last));
        failed = answer.last().is_some_and(|last| last.body == b"E");
        if is_excused { direct } else { answer }.to_vec()
    });
    *seen = excused.collect();
}

/// docs/conformance.md: "The portal of a Query that failed": PostgreSQL says 25P02 of it, as long
/// as it does not crash.
fn excuse_stale_portals(expected: &[Frame], seen: &mut [Frame]) {
    for (direct, proxied) in expected.iter().zip(seen) {
        let is_of_portal = proxied.field(b'M').as_deref() == Some("portal \"\" does not exist");
        if is_of_portal && direct.sqlstate() == "25P02" {
            *proxied = direct.clone();
        }
    }
}

/// docs/compatibility.md: "In a failed transaction": where in the server's source 25P02 comes from
/// may differ.
fn mask_places(frames: &mut [Frame]) {
    for frame in frames.iter_mut().filter(|frame| frame.tag == b'E') {
        if frame.sqlstate() == "25P02" {
            let fields = frame.body.split(|byte| *byte == 0);
            let kept = fields.filter(|field| !matches!(field.first(), Some(b'L' | b'R')));
            frame.body = kept.collect::<Vec<_>>().join(&0);
        }
    }
}

/// docs/compatibility.md: "A message that does not belong into a COPY": which one it was, a message
/// of pgtenant's own may hide.
fn mask_strays(frames: &mut [Frame]) {
    const STRAY: &[u8] = b"unexpected message type 0x";
    for frame in frames.iter_mut().filter(|frame| frame.tag == b'E') {
        if let Some(at) = frame
            .body
            .windows(STRAY.len())
            .position(|window| window == STRAY)
        {
            frame.body[at + STRAY.len()..][..2].fill(b'?');
        }
    }
}

/// Cuts off what is said of a message that is refused: FATAL; in a COPY first what PostgreSQL
/// thinks of the message, or, through pgtenant, that none came; and answers that no Sync or Flush
/// had called for, which go out with it.
fn cut_last_words(frames: &mut Vec<Frame>) {
    let is_of_refusal = |frame: &Frame| {
        let text = frame.field(b'M').unwrap_or_default();
        frame.field(b'V').as_deref() == Some("FATAL")
            || text.starts_with("unexpected message type")
            || text.starts_with("unexpected EOF")
    };
    while frames
        .last()
        .is_some_and(|last| !matches!(last.tag, b'Z' | b'E') || is_of_refusal(last))
    {
        frames.pop();
    }
}

/// Whether PostgreSQL does not take the frame for one.
fn is_refused(bytes: &[u8]) -> bool {
    let mut rest = Rest::default();
    rest.send(bytes);
    rest.ends && bytes.first() != Some(&b'X')
}

/// docs/compatibility.md: "What pgtenant answers itself does not wait for Sync or Flush": of a
/// client that leaves without either, it is all that comes.
fn drop_early_answers(expected: &[Frame], seen: &mut Vec<Frame>) {
    while seen.len() > expected.len()
        && seen
            .last()
            .is_some_and(|last| matches!(last.tag, b'1' | b'3'))
    {
        seen.pop();
    }
}

/// A session as a person reads it.
pub fn describe(session: &Session) -> String {
    let mut text = format!("startup {:?}, ending {:?}", session.startup, session.ending);
    for step in &session.steps {
        text += "\n    ";
        let mut bytes = &step.bytes[..];
        while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some(body) = rest.get(..length.saturating_sub(4)).filter(|_| length >= 4) else {
                break;
            };
            let frame = Frame {
                tag: head[0],
                body: body.to_vec(),
            };
            let _ = write!(text, "{frame} ");
            bytes = &rest[body.len()..];
        }
        if !bytes.is_empty() {
            let _ = write!(text, "and {} ", bytes.escape_ascii());
        }
        text += if step.pause { "‖" } else { "" };
    }
    text
}
