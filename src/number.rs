//! Numbers as people read them.

use std::time::Duration;

/// `1,371`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let grouped: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|chunk| std::str::from_utf8(chunk).unwrap_or_default())
        .collect();
    grouped.join(",")
}

/// `8.29 B`, `20.2 M`, `472.6 k`.
pub fn short(n: usize) -> String {
    let x = n as f64;
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", x / 1e6),
        _ => format!("{:.2} B", x / 1e9),
    }
}

/// `21G` or `0.3G`.
pub fn gibibytes(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib < 10.0 { format!("{gib:.1}G") } else { format!("{gib:.0}G") }
}

/// `15.4 GiB`, `3.1 MiB`.
pub fn size(bytes: u64) -> String {
    let (gib, mib) = (f64::from(1 << 30), f64::from(1 << 20));
    match bytes as f64 {
        b if b >= gib => format!("{:.1} GiB", b / gib),
        b => format!("{:.1} MiB", b / mib),
    }
}

/// `0.4 s`, `12 s` or `2:03`.
pub fn seconds(s: f64) -> String {
    match s {
        ..10.0 => format!("{s:.1} s"),
        ..60.0 => format!("{s:.0} s"),
        _ => clock(Duration::from_secs_f64(s)),
    }
}

/// `11:40` or `2:03:10`.
pub fn clock(left: Duration) -> String {
    let s = left.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
