//! Changes to the frames of a clip.

use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::variant::{Shown, Variant};
use vlm4d_train::data::video::Frames;

/// Two rows of three pixels each; every byte is different over all frames.
fn frames(n: usize) -> Frames {
    let rgb = (0..n * 18).map(|i| i as u8).collect();
    Frames { rgb, len: n, height: 2, width: 3 }
}

fn changed(n: usize, variant: Variant) -> Frames {
    let mut frames = frames(n);
    variant.apply(&mut frames);
    frames
}

#[test]
fn mirroring_exchanges_left_and_right_within_each_row() {
    let got = changed(2, Variant::Mirrored);
    assert_eq!(got.frame(0)[..9], [6, 7, 8, 3, 4, 5, 0, 1, 2]);
    assert_eq!(got.frame(1)[9..], [33, 34, 35, 30, 31, 32, 27, 28, 29]);
    let mut twice = got;
    Variant::Mirrored.apply(&mut twice);
    assert_eq!(twice, frames(2));
}

#[test]
fn reversing_and_shuffling_move_whole_frames() {
    let (plain, reversed) = (frames(5), changed(5, Variant::Reversed));
    for i in 0..5 {
        assert_eq!(reversed.frame(i), plain.frame(4 - i));
    }
    assert_eq!(changed(5, Variant::Plain), plain);
    for seed in 0..200 {
        for n in 2..5 {
            let shuffled = changed(n, Variant::Shuffled(seed));
            assert_ne!(shuffled, frames(n), "seed {seed} leaves {n} frames as they are");
            let mut firsts: Vec<u8> = (0..n).map(|i| shuffled.frame(i)[0]).collect();
            firsts.sort_unstable();
            assert_eq!(firsts, (0..n).map(|i| (i * 18) as u8).collect::<Vec<_>>());
        }
    }
    assert_eq!(changed(4, Variant::Shuffled(7)), changed(4, Variant::Shuffled(7)));
    assert_ne!(changed(9, Variant::Shuffled(7)), changed(9, Variant::Shuffled(8)));
    // One frame has one order.
    assert_eq!(changed(1, Variant::Shuffled(1)), frames(1));
}

#[test]
fn a_video_is_another_one_under_each_variant() {
    let of = |variant| Shown::all(&[Medium::video("a.mp4")], variant);
    assert_ne!(of(Variant::Plain), of(Variant::Reversed));
    assert_ne!(of(Variant::Shuffled(1)), of(Variant::Shuffled(2)));
}
