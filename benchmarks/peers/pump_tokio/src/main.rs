//! tokio::io::copy between guest sockets and FIFOs, as kata's Rust runtime does.
//!
//!     pump MODE BUFFER COUNT BASE DIR
//!
//! Arguments as of the Go peer; the modes here are `fifo` and `echo`.

use std::os::fd::FromRawFd;
use tokio::io::{copy, split};
use tokio::net::unix::pipe::OpenOptions;
use tokio::net::UnixStream;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let echo = arguments[1] == "echo";
    let count: i32 = arguments[3].parse().unwrap();
    let base: i32 = arguments[4].parse().unwrap();
    let dir = &arguments[5];
    for number in 0..count {
        let socket = unsafe { std::os::unix::net::UnixStream::from_raw_fd(base + number) };
        socket.set_nonblocking(true).unwrap();
        let (mut from_guest, mut to_guest) = split(UnixStream::from_std(socket).unwrap());
        let mut out = OpenOptions::new().open_sender(format!("{dir}/out.{number}")).unwrap();
        tokio::spawn(async move { copy(&mut from_guest, &mut out).await });
        if echo {
            let mut input = OpenOptions::new().open_receiver(format!("{dir}/in.{number}")).unwrap();
            tokio::spawn(async move { copy(&mut input, &mut to_guest).await });
        } else {
            std::mem::forget(to_guest);
        }
    }
    println!("ready");
    std::future::pending::<()>().await;
}
