//! What every entry point shares: status codes, owned buffers, input slices, and the fence that no panic crosses.
//! Refuses to know: tokenizers, templates, grammars. Neighbours: every other file of this crate.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Status codes of text/abi.h.
pub const OK: i32 = 0;
pub const INVALID: i32 = 1;
pub const LIMIT: i32 = 2;
pub const INTERNAL: i32 = 3;
pub const UNIMPLEMENTED: i32 = 4;
pub const NOT_FOUND: i32 = 5;

/// Rises with every change of text/abi.h.
const ABI_VERSION: u32 = 1;

pub struct Failure {
    pub code: i32,
    pub message: String,
}

pub type Outcome<T> = Result<T, Failure>;

pub fn fail<T>(code: i32, message: impl Into<String>) -> Outcome<T> {
    Err(Failure { code, message: message.into() })
}

pub fn invalid<T>(message: impl Into<String>) -> Outcome<T> {
    fail(INVALID, message)
}

/// Bytes owned by this library; phx_text_free_bytes gives them back.
#[repr(C)]
pub struct PhxBytes {
    pub data: *mut u8,
    pub size: usize,
}

/// Borrowed input: never NUL-terminated, may hold NUL bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PhxSlice {
    pub data: *const u8,
    pub size: usize,
}

impl PhxSlice {
    /// # Safety
    /// `data` must be readable for `size` bytes while the result is used.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.data.is_null() || self.size == 0 {
            return &[];
        }
        std::slice::from_raw_parts(self.data, self.size)
    }

    /// # Safety
    /// As `bytes`.
    pub unsafe fn text<'a>(self, what: &str) -> Outcome<&'a str> {
        match std::str::from_utf8(self.bytes()) {
            Ok(text) => Ok(text),
            Err(e) => invalid(format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to())),
        }
    }
}

impl PhxBytes {
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let boxed = bytes.into_boxed_slice();
        let size = boxed.len();
        PhxBytes { data: Box::into_raw(boxed) as *mut u8, size }
    }
}

/// Runs one entry point: its failure or panic becomes a status and `error`'s text.
/// # Safety
/// `error` must be null or writable.
pub unsafe fn guard(error: *mut PhxBytes, body: impl FnOnce() -> Outcome<()>) -> i32 {
    let outcome = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "unknown panic".to_string());
            fail(INTERNAL, format!("text library panicked: {text}"))
        }
    };
    match outcome {
        Ok(()) => OK,
        Err(failure) => {
            if !error.is_null() {
                *error = PhxBytes::from_vec(failure.message.into_bytes());
            }
            failure.code
        }
    }
}

/// Frees a handle made by Box::into_raw; a panic in a destructor stays here.
/// # Safety
/// `handle` must be null or come from Box::into_raw of the same type, once.
pub unsafe fn drop_handle<T>(handle: *mut T) {
    if !handle.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(handle))));
    }
}

#[no_mangle]
pub extern "C" fn phx_text_abi_version() -> u32 {
    ABI_VERSION
}

/// # Safety
/// `bytes` must come from this library and not have been freed.
#[no_mangle]
pub unsafe extern "C" fn phx_text_free_bytes(bytes: PhxBytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.size)));
    }
}

/// # Safety
/// `ids` and `count` must come from phx_tokenizer_encode.
#[no_mangle]
pub unsafe extern "C" fn phx_text_free_ids(ids: *mut u32, count: usize) {
    if !ids.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids, count)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(body: impl FnOnce() -> Outcome<()>) -> (i32, String) {
        let mut error = PhxBytes { data: std::ptr::null_mut(), size: 0 };
        let code = unsafe { guard(&mut error, body) };
        if error.data.is_null() {
            return (code, String::new());
        }
        let text = String::from_utf8(unsafe { std::slice::from_raw_parts(error.data, error.size) }.to_vec()).unwrap();
        unsafe { phx_text_free_bytes(error) };
        (code, text)
    }

    #[test]
    fn panics_become_statuses() {
        assert_eq!(run(|| Ok(())), (OK, String::new()));
        assert_eq!(run(|| invalid("bad")), (INVALID, "bad".into()));
        assert_eq!(run(|| panic!("a literal")), (INTERNAL, "text library panicked: a literal".into()));
        assert_eq!(run(|| panic!("{} {}", "a", 1)), (INTERNAL, "text library panicked: a 1".into()));
        assert_eq!(run(|| std::panic::panic_any(7)), (INTERNAL, "text library panicked: unknown panic".into()));
        let empty: Vec<u8> = Vec::new();
        assert_eq!(run(move || if empty[3] == 0 { Ok(()) } else { invalid("") }).0, INTERNAL);
        // Without a place for the text the status is all there is.
        assert_eq!(unsafe { guard(std::ptr::null_mut(), || panic!("x")) }, INTERNAL);
    }

    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }

    #[test]
    fn handles_may_be_null_or_panic_when_freed() {
        unsafe {
            drop_handle::<Bomb>(std::ptr::null_mut());
            drop_handle(Box::into_raw(Box::new(Bomb)));
            phx_text_free_bytes(PhxBytes { data: std::ptr::null_mut(), size: 0 });
            phx_text_free_bytes(PhxBytes::from_vec(Vec::new()));
            phx_text_free_ids(std::ptr::null_mut(), 3);
        }
    }

    #[test]
    fn slices_are_bytes_or_valid_text() {
        let slice = |bytes: &'static [u8]| PhxSlice { data: bytes.as_ptr(), size: bytes.len() };
        unsafe {
            assert_eq!(PhxSlice { data: std::ptr::null(), size: 5 }.bytes(), b"");
            assert_eq!(slice(b"a\0b").text("it").ok(), Some("a\0b"));
            let failure = slice(b"ok\xff").text("the text").err().unwrap();
            assert_eq!((failure.code, failure.message.as_str()), (INVALID, "the text is not valid UTF-8 at byte 2"));
        }
    }
}
