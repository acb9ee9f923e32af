//! Arrays that the kernel reads and writes on its own.

use std::ptr::NonNull;

/// `len` values at an address that never changes, accessed through raw pointers only, because the
/// kernel may be accessing them too.
///
/// Who hands an element's address to the kernel must not drop the array before the kernel is done
/// with it.
pub(super) struct Lent<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the array belongs to whoever owns this value; there are no other references.
unsafe impl<T: Send> Send for Lent<T> {}

impl<T: Copy> Lent<T> {
    /// An array of `len` copies of `value`.
    pub(super) fn new(value: T, len: usize) -> Self {
        let array = vec![value; len].into_boxed_slice();
        // The pointer of a box is never null.
        Self { start: NonNull::new(Box::into_raw(array).cast()).expect("boxes are not null"), len }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The address of one. Panics where there is no such element.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: inside the array, as just checked.
        unsafe { self.start.as_ptr().add(index) }
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let array = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: the box that `new` took apart; the owner of this value knows the kernel to be
        // done with it, or would have forgotten it instead.
        drop(unsafe { Box::from_raw(array) });
    }
}
