// Between functions on Tensors and the stack of 64-bit values on which torch's stable interface passes
// arguments.
#pragma once

#include <cstring>
#include <tuple>
#include <type_traits>

#include "tensor.h"

namespace bark_accel {

[[noreturn]] void refuse(const std::string& message);  // checks.h

namespace boxed {

// A stack entry as a T; what it owns goes to the T.
template <class T>
struct Entry {
  static_assert(std::is_arithmetic_v<T>);
  static T take(StableIValue value) {
    T plain;
    std::memcpy(&plain, &value, sizeof plain);
    return plain;
  }
};

template <>
struct Entry<Tensor> {
  static Tensor take(StableIValue value) { return Tensor(reinterpret_cast<AtenTensorHandle>(value)); }
};

template <class T>
struct Entry<std::optional<T>> {
  static std::optional<T> take(StableIValue value) {
    auto* inner = reinterpret_cast<StableIValue*>(value);
    if (!inner) return std::nullopt;
    std::optional<T> result(Entry<T>::take(*inner));
    delete inner;
    return result;
  }
};

template <class T>
struct Entry<std::vector<T>> {
  static std::vector<T> take(StableIValue value) {
    auto* list = reinterpret_cast<StableListHandle>(value);
    size_t size = 0;
    check_torch(torch_list_size(list, &size));
    std::vector<T> result;
    result.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue entry;
      check_torch(torch_list_get_item(list, i, &entry));
      result.push_back(Entry<T>::take(entry));
    }
    check_torch(torch_delete_list(list));
    return result;
  }
};

template <class T>
StableIValue give(T plain) {
  static_assert(std::is_arithmetic_v<T>);
  StableIValue value = 0;
  std::memcpy(&value, &plain, sizeof plain);
  return value;
}
inline StableIValue give(std::nullopt_t) { return 0; }
inline StableIValue give(AtenTensorHandle owned) { return reinterpret_cast<StableIValue>(owned); }
inline StableIValue give(const Tensor& tensor) { return give(tensor.new_handle()); }
template <class T>
StableIValue give(const std::optional<T>& value) {
  return value ? reinterpret_cast<StableIValue>(new StableIValue(give(*value))) : 0;
}

template <class T>
bool is_none(const T&) {
  return false;
}
inline bool is_none(const Tensor& tensor) { return !tensor.defined(); }
inline bool is_none(const std::optional<Tensor>& tensor) { return tensor && !tensor->defined(); }

template <auto function>
struct Kernel;
template <class... Arguments, Tensor (*function)(Arguments...)>
struct Kernel<function> {
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    call(stack, std::index_sequence_for<Arguments...>());
  }

 private:
  template <size_t... i>
  static void call(StableIValue* stack, std::index_sequence<i...>) {
    std::tuple<std::decay_t<Arguments>...> arguments{Entry<std::decay_t<Arguments>>::take(stack[i])...};
    // Only now, when all of them have an owner.
    ((is_none(std::get<i>(arguments)) ? refuse(joined("expected a tensor as argument ", i, ", got None"))
                                      : void()),
     ...);
    stack[0] = give(std::apply(function, arguments).release());
  }
};

}  // namespace boxed

// A function that returns a Tensor, as the implementation of an op of ours. (TORCH_BOX allocates more for
// every tensor of a list.)
struct Implementation {
  const char* op;
  void (*call)(StableIValue*, uint64_t, uint64_t);
};
template <auto function>
constexpr Implementation implement(const char* op) {
  return {op, &boxed::Kernel<function>::call};
}

// Registers them for a dispatch key, for as long as the library is loaded.
class Implementations {
 public:
  Implementations(const char* key, std::initializer_list<Implementation> all) {
    check_torch(aoti_torch_library_init_impl("bark_accel", key, __FILE__, __LINE__, &library_));
    for (const Implementation& one : all) {
      check_torch(torch_library_impl(library_, one.op, one.call, TORCH_TARGET_VERSION));
    }
  }
  ~Implementations() { aoti_torch_delete_library_object(library_); }
  Implementations(const Implementations&) = delete;

 private:
  TorchLibraryHandle library_ = nullptr;
};

// Calls an op of torch that returns one tensor; all arguments of its schema have to be given.
template <class... Arguments>
Tensor call_torch(const char* name, const char* overload, const Arguments&... arguments) {
  StableIValue stack[] = {boxed::give(arguments)...};
  check_torch(torch_call_dispatcher(name, overload, stack, TORCH_TARGET_VERSION));
  return boxed::Entry<Tensor>::take(stack[0]);
}

inline Tensor contiguous(const Tensor& t) {
  bool already = false;
  check_torch(aoti_torch_is_contiguous(t.handle(), &already));
  return already ? t : call_torch("aten::contiguous", "", t, aoti_torch_memory_format_contiguous_format());
}

}  // namespace bark_accel
