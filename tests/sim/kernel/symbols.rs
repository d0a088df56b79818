//! The functions of the C library that end in a kernel of ours on simulated threads. Elsewhere
//! they are the system calls that they are in the C library.
//!
//! A program's own definition of a function goes before that of a shared library, for all that is
//! linked into it.

#![allow(unsafe_code, clippy::missing_safety_doc)]

use libc::{c_int, c_long, c_uint, c_void, iovec, sockaddr, sockaddr_in, socklen_t, ssize_t};

use super::{BASE, EPOCH, IS_SIMULATED, Kernel, NOW, RANDOM, Result, random, wait, with};

fn is_simulated() -> bool {
    IS_SIMULATED.try_with(std::cell::Cell::get).unwrap_or(false)
}

fn is_ours(descriptor: c_int) -> bool {
    descriptor >= BASE
}

fn fail(error: c_int) -> c_int {
    // SAFETY: it is the calling thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

fn int(result: Result<c_int>) -> c_int {
    result.unwrap_or_else(fail)
}

fn size(result: Result<usize>) -> ssize_t {
    match result {
        Ok(size) => size as ssize_t,
        Err(error) => fail(error) as ssize_t,
    }
}

/// What is left of a simulation that is over is closed in silence.
fn over() -> c_int {
    fail(libc::EBADF)
}

macro_rules! ours {
    ($descriptor:expr, $does:expr, $($real:expr),+) => {
        match is_ours($descriptor) {
            true if is_simulated() => $does,
            true => over() as _,
            // SAFETY: the caller's arguments, as they are.
            false => unsafe { libc::syscall($($real),+) as _ },
        }
    };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    if !is_simulated() || clock == libc::CLOCK_THREAD_CPUTIME_ID {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    }
    let mut now = NOW.get();
    if clock == libc::CLOCK_REALTIME {
        now += EPOCH * 1_000_000_000;
    }
    // SAFETY: the caller has room for it.
    unsafe {
        (*time).tv_sec = (now / 1_000_000_000) as libc::time_t;
        (*time).tv_nsec = (now % 1_000_000_000) as c_long;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> ssize_t {
    if !is_simulated() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as ssize_t };
    }
    // SAFETY: the caller has room for so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    let mut state = RANDOM.get();
    for chunk in bytes.chunks_mut(8) {
        let number = random(&mut state).to_ne_bytes();
        chunk.copy_from_slice(&number[..chunk.len()]);
    }
    RANDOM.set(state);
    length as ssize_t
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    match is_simulated() {
        true => with(Kernel::epoll_create),
        // SAFETY: the caller's arguments, as they are.
        false => unsafe { libc::syscall(libc::SYS_epoll_create1, flags) as c_int },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    call: c_int,
    descriptor: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    ours!(
        epoll,
        {
            // SAFETY: null, or the caller's.
            let event = unsafe { event.as_ref() }.map_or((0, 0), |event| (event.events, event.u64));
            int(with(|kernel| {
                kernel.epoll_ctl(epoll, call, descriptor, event)
            }))
        },
        libc::SYS_epoll_ctl,
        epoll,
        call,
        descriptor,
        event
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    ours!(
        epoll,
        match wait(epoll, usize::try_from(most).unwrap_or(0), timeout) {
            Ok(ready) => {
                for (at, (flags, data)) in ready.iter().enumerate() {
                    // SAFETY: the caller has room for `most`.
                    unsafe {
                        events.add(at).write(libc::epoll_event {
                            events: *flags,
                            u64: *data,
                        });
                    }
                }
                ready.len() as c_int
            }
            Err(error) => fail(error),
        },
        libc::SYS_epoll_pwait,
        epoll,
        events,
        most,
        timeout,
        std::ptr::null::<c_void>(),
        8_usize
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn eventfd(count: c_uint, flags: c_int) -> c_int {
    match is_simulated() {
        true => with(|kernel| kernel.eventfd(u64::from(count))),
        // SAFETY: the caller's arguments, as they are.
        false => unsafe { libc::syscall(libc::SYS_eventfd2, count, flags) as c_int },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    match is_simulated() && domain == libc::AF_INET {
        true => with(Kernel::new_socket),
        // SAFETY: the caller's arguments, as they are.
        false => unsafe { libc::syscall(libc::SYS_socket, domain, kind, protocol) as c_int },
    }
}

/// The port of an address, which is the caller's.
unsafe fn port(address: *const sockaddr) -> u16 {
    // SAFETY: of an IPv4 socket the address is of IPv4.
    u16::from_be(unsafe { (*address.cast::<sockaddr_in>()).sin_port })
}

/// Gives the caller an address: of this machine, with `port`.
unsafe fn give(port: u16, address: *mut sockaddr, length: *mut socklen_t) {
    if address.is_null() {
        return;
    }
    // SAFETY: it is a structure of numbers, and the caller has room for it.
    unsafe {
        let mut given: sockaddr_in = std::mem::zeroed();
        given.sin_family = libc::AF_INET as libc::sa_family_t;
        given.sin_port = port.to_be();
        given.sin_addr.s_addr = u32::from_be_bytes([127, 0, 0, 1]).to_be();
        address.cast::<sockaddr_in>().write_unaligned(given);
        *length = size_of::<sockaddr_in>() as socklen_t;
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(
    descriptor: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> c_int {
    ours!(
        descriptor,
        {
            // SAFETY: the caller's.
            let port = unsafe { port(address) };
            int(with(|kernel| kernel.bind(descriptor, port)))
        },
        libc::SYS_bind,
        descriptor,
        address,
        length
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(descriptor: c_int, backlog: c_int) -> c_int {
    ours!(
        descriptor,
        int(with(|kernel| kernel.listen(descriptor))),
        libc::SYS_listen,
        descriptor,
        backlog
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    descriptor: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    ours!(
        descriptor,
        match with(|kernel| kernel.accept(descriptor)) {
            Ok((accepted, port)) => {
                // SAFETY: the caller's.
                unsafe { give(port, address, length) };
                accepted
            }
            Err(error) => fail(error),
        },
        libc::SYS_accept4,
        descriptor,
        address,
        length,
        flags
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(
    descriptor: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> c_int {
    ours!(
        descriptor,
        {
            // SAFETY: the caller's.
            let port = unsafe { port(address) };
            int(with(|kernel| kernel.connect(descriptor, port)))
        },
        libc::SYS_connect,
        descriptor,
        address,
        length
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    descriptor: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    ours!(
        descriptor,
        {
            let number = match (level, name) {
                (libc::SOL_SOCKET, libc::SO_ERROR) => with(|kernel| kernel.take_error(descriptor)),
                _ => 0,
            };
            // SAFETY: the caller has room for so many bytes, and what it gets are numbers.
            unsafe {
                std::ptr::write_bytes(value.cast::<u8>(), 0, *length as usize);
                if *length >= 4 {
                    value.cast::<c_int>().write_unaligned(number);
                }
            }
            0
        },
        libc::SYS_getsockopt,
        descriptor,
        level,
        name,
        value,
        length
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    descriptor: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    ours!(
        descriptor,
        0,
        libc::SYS_setsockopt,
        descriptor,
        level,
        name,
        value,
        length
    )
}

macro_rules! name_of {
    ($function:ident, $peer:expr, $call:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $function(
            descriptor: c_int,
            address: *mut sockaddr,
            length: *mut socklen_t,
        ) -> c_int {
            ours!(
                descriptor,
                match with(|kernel| kernel.port_of(descriptor, $peer)) {
                    Ok(port) => {
                        // SAFETY: the caller's.
                        unsafe { give(port, address, length) };
                        0
                    }
                    Err(error) => fail(error),
                },
                $call,
                descriptor,
                address,
                length
            )
        }
    };
}

name_of!(getsockname, false, libc::SYS_getsockname);
name_of!(getpeername, true, libc::SYS_getpeername);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn shutdown(descriptor: c_int, how: c_int) -> c_int {
    ours!(
        descriptor,
        int(with(|kernel| kernel.shutdown(descriptor, how))),
        libc::SYS_shutdown,
        descriptor,
        how
    )
}

/// A buffer of the caller's to write to.
unsafe fn buffer<'b>(bytes: *mut c_void, length: usize) -> &'b mut [u8] {
    // SAFETY: the caller has room for so many bytes.
    unsafe { std::slice::from_raw_parts_mut(bytes.cast(), length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(
    descriptor: c_int,
    bytes: *mut c_void,
    length: usize,
    flags: c_int,
) -> ssize_t {
    ours!(
        descriptor,
        {
            let peek = flags & libc::MSG_PEEK != 0;
            // SAFETY: the caller's.
            let buffer = unsafe { buffer(bytes, length) };
            size(with(|kernel| kernel.read(descriptor, buffer, peek)))
        },
        libc::SYS_recvfrom,
        descriptor,
        bytes,
        length,
        flags,
        std::ptr::null::<c_void>(),
        std::ptr::null::<c_void>()
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(descriptor: c_int, bytes: *mut c_void, length: usize) -> ssize_t {
    ours!(
        descriptor,
        {
            // SAFETY: the caller's.
            let buffer = unsafe { buffer(bytes, length) };
            size(with(|kernel| kernel.read(descriptor, buffer, false)))
        },
        libc::SYS_read,
        descriptor,
        bytes,
        length
    )
}

fn send_all(descriptor: c_int, parts: &[&[u8]]) -> ssize_t {
    let mut sent = 0;
    for part in parts {
        match with(|kernel| kernel.write(descriptor, part)) {
            Ok(taken) => {
                sent += taken;
                if taken < part.len() {
                    break;
                }
            }
            Err(_) if sent > 0 => break,
            Err(error) => return fail(error) as ssize_t,
        }
    }
    sent as ssize_t
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(
    descriptor: c_int,
    bytes: *const c_void,
    length: usize,
    flags: c_int,
) -> ssize_t {
    ours!(
        descriptor,
        {
            // SAFETY: the caller's.
            let part = unsafe { std::slice::from_raw_parts(bytes.cast(), length) };
            send_all(descriptor, &[part])
        },
        libc::SYS_sendto,
        descriptor,
        bytes,
        length,
        flags,
        std::ptr::null::<c_void>(),
        0_usize
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, bytes: *const c_void, length: usize) -> ssize_t {
    ours!(
        descriptor,
        {
            // SAFETY: the caller's.
            let part = unsafe { std::slice::from_raw_parts(bytes.cast(), length) };
            send_all(descriptor, &[part])
        },
        libc::SYS_write,
        descriptor,
        bytes,
        length
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(descriptor: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    ours!(
        descriptor,
        {
            let count = usize::try_from(count).unwrap_or(0);
            // SAFETY: the caller's, so many of them, each of so many bytes.
            let parts: Vec<&[u8]> = unsafe {
                let parts = std::slice::from_raw_parts(parts, count);
                let bytes = |part: &iovec| {
                    std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len)
                };
                parts.iter().map(bytes).collect()
            };
            send_all(descriptor, &parts)
        },
        libc::SYS_writev,
        descriptor,
        parts,
        count
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(descriptor: c_int, call: c_int, argument: c_long) -> c_int {
    ours!(
        descriptor,
        match call {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
                int(with(|kernel| kernel.duplicate(descriptor)))
            }
            libc::F_GETFL => libc::O_RDWR | libc::O_NONBLOCK,
            _ => 0,
        },
        libc::SYS_fcntl,
        descriptor,
        call,
        argument
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(descriptor: c_int, call: libc::c_ulong, argument: c_long) -> c_int {
    ours!(descriptor, 0, libc::SYS_ioctl, descriptor, call, argument)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    ours!(
        descriptor,
        int(with(|kernel| kernel.close(descriptor))),
        libc::SYS_close,
        descriptor
    )
}
