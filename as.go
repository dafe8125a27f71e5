package broker

// As returns v as the optional interface T ([Admin], [Exchanger],
// [ReplyQueuer], [Transactional], …) and whether it has it. A wrapper that
// passes on optional interfaces implements
//
//	As(target any) bool
//
// which sets *target, a pointer to an interface, and reports true. It must
// never pass on a data path that it decorates: As does not unwrap by itself,
// so that nothing bypasses a wrapper.
func As[T any](v any) (T, bool) {
	if t, ok := v.(T); ok {
		return t, true
	}
	var t T
	if a, ok := v.(interface{ As(target any) bool }); ok && a.As(&t) {
		return t, true
	}
	return t, false
}
