//! Numbers as people read them.

use std::time::Duration;

use crate::eval::stats::Metric;

/// `38.2 ±5.6 (n 275)`: percent and half the interval's width; `0.0 [0.0, 70.8] (n 6)` where the
/// interval reaches more than twice as far to one side, and ± would mislead.
pub fn percent(metric: &Metric) -> String {
    let [value, low, high] =
        [metric.accuracy, metric.ci95[0], metric.ci95[1]].map(|share| 100.0 * share);
    let (below, above) = (value - low, high - value);
    let interval = match 2.0 * below.min(above) < below.max(above) {
        true => format!("[{low:.1}, {high:.1}]"),
        false => format!("±{:.1}", (high - low) / 2.0),
    };
    format!("{value:.1} {interval} (n {})", metric.n)
}

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
pub(super) fn short(n: usize) -> String {
    let x = n as f64;
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", x / 1e6),
        _ => format!("{:.2} B", x / 1e9),
    }
}

/// `21G` or `0.3G`.
pub(super) fn gibibytes(bytes: u64) -> String {
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
pub(super) fn seconds(s: f64) -> String {
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
