//! A byte queue between two sockets.
//!
//! Its memory is borrowed from a per-thread pool while it holds bytes, and given back when it is
//! empty, so that an idle client costs no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of a pooled buffer in bytes: one read takes at most this much.
pub const CHUNK: usize = 16 * 1024;
/// Buffers kept for reuse on each thread.
const SPARE: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn borrow_chunk() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
}

fn give_back(chunk: Box<[u8]>) {
    if chunk.len() == CHUNK {
        FREE.with_borrow_mut(|free| {
            if free.len() < SPARE {
                free.push(chunk);
            }
        });
    }
}

/// Bytes in order of arrival: read at the front, written at the back.
#[derive(Default)]
pub struct Buffer {
    data: Box<[u8]>,
    start: usize,
    end: usize,
    /// What was written has yet to be flushed: TLS holds bytes of its own.
    unflushed: bool,
    /// So many bytes of the memory were held, and have left since: the last that did.
    left: u32,
}

impl Buffer {
    pub fn new() -> Self {
        Self::default()
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether all that was put in has left for the socket, also out of a TLS session.
    pub fn is_drained(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Forgets what it holds and what it should have flushed: the socket is gone.
    pub fn abandon(&mut self) {
        self.consume(self.len());
        self.unflushed = false;
        self.left = 0;
    }

    /// The last bytes that left, if it is empty and its memory was
    /// [kept](Self::poll_drain_keeping).
    pub fn last_sent(&self) -> &[u8] {
        match self.is_empty() {
            true => self.data.get(..self.left as usize).unwrap_or_default(),
            false => &[],
        }
    }

    /// Drops the first `n` bytes; `n` must not exceed [`len`](Self::len).
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n;
        if self.start >= self.end {
            self.left = u32::try_from(self.end).unwrap_or(0);
            self.start = 0;
            self.end = 0;
        }
    }

    /// Appends `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.data[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Puts `bytes` in the place of the `n` at `at`, which it must hold.
    pub fn replace(&mut self, at: usize, n: usize, bytes: &[u8]) {
        debug_assert!(at + n <= self.len());
        let rest = self.bytes()[at + n..].to_vec();
        self.end = self.start + at;
        self.extend(bytes);
        self.extend(&rest);
    }

    /// Moves the first `n` bytes to the end of `other`: by swapping the two when that is all there
    /// is, else by copying.
    pub fn move_to(&mut self, other: &mut Buffer, n: usize) {
        if n == self.len() && other.is_empty() {
            std::mem::swap(&mut self.data, &mut other.data);
            other.start = std::mem::take(&mut self.start);
            other.end = std::mem::take(&mut self.end);
            self.left = 0;
        } else {
            other.extend(&self.bytes()[..n]);
            self.consume(n);
        }
    }

    /// Room for `more` bytes at the end.
    fn reserve(&mut self, more: usize) {
        if self.data.len() - self.end >= more {
            return;
        }
        let held = self.len();
        if self.data.len() >= held + more {
            self.data.copy_within(self.start..self.end, 0);
        } else {
            let mut data = if held + more <= CHUNK {
                borrow_chunk()
            } else {
                vec![0; (held + more).next_power_of_two()].into_boxed_slice()
            };
            data[..held].copy_from_slice(self.bytes());
            give_back(std::mem::replace(&mut self.data, data));
        }
        self.start = 0;
        self.end = held;
    }

    /// Gives the memory back if nothing is held.
    pub fn trim(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            self.left = 0;
            give_back(std::mem::take(&mut self.data));
        }
    }

    /// Reads once from `io`, at most one chunk; 0 is the end of the stream. The buffer has no
    /// memory while it waits with nothing in it.
    ///
    /// Cancel safe: what was read is in the buffer.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            self.data = borrow_chunk();
        } else if self.data.len() == self.end {
            self.reserve(if self.is_empty() { CHUNK } else { CHUNK / 2 });
        }
        let mut space = ReadBuf::new(&mut self.data[self.end..]);
        let read = Pin::new(io).poll_read(cx, &mut space);
        let n = space.filled().len();
        self.end += n;
        if n == 0 {
            self.trim();
        }
        read.map_ok(|()| n)
    }

    /// Writes all it holds to `io` and flushes; the memory goes back when it is written. Pending
    /// until it [is drained](Self::is_drained).
    ///
    /// Cancel safe: what was written is gone from the buffer.
    pub fn poll_drain<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, io))?;
        self.trim();
        self.poll_flush(cx, io)
    }

    /// The same; one chunk of memory stays until [`trim`](Self::trim), with what left last.
    pub fn poll_drain_keeping<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, io))?;
        if self.data.len() > CHUNK {
            self.trim();
        }
        self.poll_flush(cx, io)
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, self.bytes()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(n);
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_they_went_in() {
        let mut buffer = Buffer::new();
        let mut expected = Vec::new();
        for i in 0..200_u32 {
            let piece = vec![u8::try_from(i).unwrap_or(0); (i * 37 % 1000) as usize];
            buffer.extend(&piece);
            expected.extend_from_slice(&piece);
            let n = (i as usize * 53) % (buffer.len() + 1);
            assert_eq!(buffer.bytes()[..n], expected[..n]);
            buffer.consume(n);
            expected.drain(..n);
        }
        assert_eq!(buffer.bytes(), expected);
    }

    #[test]
    fn moving_all_to_an_empty_buffer_is_a_swap_and_else_a_copy() {
        let (mut a, mut b) = (Buffer::new(), Buffer::new());
        a.extend(b"hello");
        a.move_to(&mut b, 5);
        assert_eq!((a.bytes(), b.bytes()), (&b""[..], &b"hello"[..]));
        a.extend(b" world!");
        a.move_to(&mut b, 6);
        assert_eq!((a.bytes(), b.bytes()), (&b"!"[..], &b"hello world"[..]));
    }

    #[tokio::test]
    async fn an_empty_buffer_holds_no_memory_while_it_waits() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut buffer = Buffer::new();
        let waiting = poll_fn(|cx| Poll::Ready(buffer.poll_fill(cx, &mut near).is_pending())).await;
        assert!(waiting);
        assert_eq!(buffer.data.len(), 0);
        far.write_all(b"abc").await.unwrap();
        assert_eq!(
            poll_fn(|cx| buffer.poll_fill(cx, &mut near)).await.unwrap(),
            3
        );
        poll_fn(|cx| buffer.poll_drain(cx, &mut near))
            .await
            .unwrap();
        assert_eq!(buffer.data.len(), 0);
        let mut echoed = [0; 3];
        far.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"abc");
    }
    #[tokio::test]
    async fn what_left_last_can_be_read_until_more_comes() {
        let (mut near, _far) = tokio::io::duplex(1 << 20);
        let (mut from, mut buffer) = (Buffer::new(), Buffer::new());
        for sent in [&b"one"[..], b"the second", b"3"] {
            from.extend(b"skipped");
            from.consume(7);
            from.extend(sent);
            from.move_to(&mut buffer, sent.len());
            assert_eq!(buffer.last_sent(), b"");
            poll_fn(|cx| buffer.poll_drain_keeping(cx, &mut near))
                .await
                .unwrap();
            assert_eq!(buffer.last_sent(), sent);
        }
        buffer.extend(b"abandoned");
        buffer.abandon();
        assert_eq!(buffer.last_sent(), b"");
        buffer.trim();
        assert_eq!(buffer.data.len(), 0);
        buffer.extend(&vec![0; CHUNK + 1]);
        poll_fn(|cx| buffer.poll_drain_keeping(cx, &mut near))
            .await
            .unwrap();
        assert_eq!((buffer.data.len(), buffer.last_sent()), (0, &b""[..]));
    }
}
