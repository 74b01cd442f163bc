//! Decoded pictures → packed RGB, as `PyAV` converts them.

use video_rs::ffmpeg::{self, color, format, frame, software::scaling};

/// Converts decoded pictures to packed RGB.
pub(super) struct Converter {
    scaler: scaling::Context,
    rgb: frame::Video,
}

impl Converter {
    /// A converter for pictures like `raw`.
    pub(super) fn new(raw: &frame::Video) -> Result<Self, ffmpeg::Error> {
        let (width, height) = (raw.width(), raw.height());
        // PyAV's default filter; it matters only where chroma is interpolated.
        let flags = scaling::Flags::BILINEAR;
        let mut scaler = scaling::Context::get(
            raw.format(),
            width,
            height,
            format::Pixel::RGB24,
            width,
            height,
            flags,
        )?;
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

/// Tells swscale the matrix that the stream is tagged with; without it, BT.601 is assumed.
fn set_color_matrix(scaler: &mut scaling::Context, raw: &frame::Video) {
    let matrix = match raw.color_space() {
        color::Space::BT709 => ffmpeg::ffi::SWS_CS_ITU709,
        color::Space::FCC => ffmpeg::ffi::SWS_CS_FCC,
        color::Space::SMPTE240M => ffmpeg::ffi::SWS_CS_SMPTE240M,
        color::Space::BT2020NCL | color::Space::BT2020CL => ffmpeg::ffi::SWS_CS_BT2020,
        _ => return,
    };
    let full_range = i32::from(raw.color_range() == color::Range::JPEG);
    // SAFETY: `scaler` owns a live context, and the coefficients are static tables of swscale.
    // The bindings' safe part cannot set the matrix. Contrast and saturation are 1 in 16.16.
    unsafe {
        let table = ffmpeg::ffi::sws_getCoefficients(matrix);
        let context = scaler.as_mut_ptr();
        let one = 1 << 16;
        ffmpeg::ffi::sws_setColorspaceDetails(context, table, full_range, table, 1, 0, one, one);
    }
}
