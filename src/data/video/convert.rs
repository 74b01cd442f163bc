//! Decoded pictures → packed RGB, as `PyAV` converts them.

use video_rs::ffmpeg::{self, chroma, color, format, frame, software::scaling};

/// Converts decoded pictures to packed RGB.
pub(super) struct Converter {
    scaler: scaling::Context,
    rgb: frame::Video,
}

impl Converter {
    /// A converter for pictures like `raw`.
    pub(super) fn new(raw: &frame::Video) -> Result<Self, ffmpeg::Error> {
        let (from, to) = (raw.format(), format::Pixel::RGB24);
        let (w, h) = (raw.width(), raw.height());
        let mut scaler = scaling::Context::get(from, w, h, to, w, h, scaling::Flags::POINT)?;
        set_chroma_position(&mut scaler, raw);
        // PyAV's default filter; it matters only where chroma is interpolated. A position counts
        // while a context is built, and another filter has it built again, the position kept.
        scaler.cached(from, w, h, to, w, h, scaling::Flags::BILINEAR);
        // SAFETY: the pointer is only looked at.
        if unsafe { scaler.as_ptr().is_null() } {
            return Err(ffmpeg::Error::InvalidData);
        }
        set_color_matrix(&mut scaler, raw);
        Ok(Self { scaler, rgb: frame::Video::empty() })
    }

    /// Writes the picture's rows to `out`, `[height, width, 3]`, without the decoder's padding.
    pub(super) fn write(
        &mut self,
        raw: &frame::Video,
        out: &mut [u8],
    ) -> Result<(), ffmpeg::Error> {
        self.scaler.run(raw, &mut self.rgb)?;
        let stride = self.rgb.stride(0);
        let row = raw.width() as usize * 3;
        for (to, from) in out.chunks_mut(row).zip(self.rgb.data(0).chunks(stride)) {
            to.copy_from_slice(&from[..row]);
        }
        Ok(())
    }
}

/// Tells swscale where the chroma lies that several pixels share, as ffmpeg 8 does by itself: in
/// their middle unless the stream is tagged otherwise. Most 8-bit pictures are converted without
/// regard to it.
fn set_chroma_position(scaler: &mut scaling::Context, raw: &frame::Video) {
    use chroma::Location::{BottomLeft, Left, Top, TopLeft};
    let location = raw.chroma_location();
    let edges = [
        (c"src_h_chr_pos", matches!(location, Left | TopLeft | BottomLeft)),
        (c"src_v_chr_pos", matches!(location, Top | TopLeft)),
    ];
    for (option, _) in edges.iter().filter(|(_, is_at_edge)| *is_at_edge) {
        // SAFETY: `scaler` owns a live context, and the options are its own. The bindings' safe
        // part does not offer them.
        unsafe { ffmpeg::ffi::av_opt_set_int(scaler.as_mut_ptr().cast(), option.as_ptr(), 0, 0) };
    }
}

/// Tells swscale the matrix and the range that the stream is tagged with; without them, BT.601 and
/// the limited range are assumed.
fn set_color_matrix(scaler: &mut scaling::Context, raw: &frame::Video) {
    let full_range = raw.color_range() == color::Range::JPEG;
    let matrix = match raw.color_space() {
        color::Space::BT709 => ffmpeg::ffi::SWS_CS_ITU709,
        color::Space::FCC => ffmpeg::ffi::SWS_CS_FCC,
        color::Space::SMPTE240M => ffmpeg::ffi::SWS_CS_SMPTE240M,
        color::Space::BT2020NCL | color::Space::BT2020CL => ffmpeg::ffi::SWS_CS_BT2020,
        _ if full_range => ffmpeg::ffi::SWS_CS_DEFAULT,
        _ => return,
    };
    // SAFETY: `scaler` owns a live context, and the coefficients are static tables of swscale.
    // The bindings' safe part cannot set the matrix. Contrast and saturation are 1 in 16.16.
    unsafe {
        let table = ffmpeg::ffi::sws_getCoefficients(matrix);
        let context = scaler.as_mut_ptr();
        let (range, one) = (i32::from(full_range), 1 << 16);
        ffmpeg::ffi::sws_setColorspaceDetails(context, table, range, table, 1, 0, one, one);
    }
}
