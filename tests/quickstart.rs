//! What the demo's runs show, where `VLM4D_DEMO_RUNS` names the folder that `make demo` left them in:
//! the model has learned, from the video, and which way things move in it.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::skipped;

/// Lower end of the 95 % interval of a difference in accuracy.
fn at_least(difference: &Value) -> f64 {
    difference["ci95"][0].as_f64().unwrap_or_else(|| panic!("no interval: {difference}"))
}

#[test]
fn the_demo_learns_more_than_chance_explains() {
    let Some(runs) = std::env::var_os("VLM4D_DEMO_RUNS").map(PathBuf::from) else {
        skipped("VLM4D_DEMO_RUNS names no folder with the demo's runs");
        return;
    };
    let text = std::fs::read_to_string(runs.join("real/after/metrics.json")).unwrap();
    let after: Value = serde_json::from_str(&text).unwrap();
    for format in ["mc", "ff"] {
        let gained = at_least(&after[format]["change"]);
        assert!(gained > 0.0, "{format}: after may be no better than before: {gained}");
        for control in ["no_video", "reversed"] {
            let seen = at_least(&after["controls"][control][format]["gain"]);
            assert!(seen > 0.0, "{format}: {control} may do as well as the video: {seen}");
        }
    }
}
