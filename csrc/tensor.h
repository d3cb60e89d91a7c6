// Tensors, and the few things that the ops ask of torch, over torch's stable C interface (2.11 and later):
// what is compiled here loads in later versions of torch too. Sizes, strides, dtype and device are read once.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bark_accel {

// The parts, one after the other.
template <class... Parts>
__attribute__((noinline, cold)) std::string joined(const Parts&... parts) {
  std::ostringstream message(std::ios_base::out);
  (message << ... << parts);
  return message.str();
}

// RuntimeError in Python.
#define RUNTIME_CHECK(condition, ...)                                              \
  do {                                                                             \
    if (!(condition)) throw std::runtime_error(::bark_accel::joined(__VA_ARGS__)); \
  } while (false)

// For calls of the C interface, which tell what is wrong on stderr.
inline void check_torch(AOTITorchError error) {
  RUNTIME_CHECK(error == TORCH_SUCCESS, "bark_accel: torch refused a call");
}

struct ScalarType {
  int32_t code;  // torch's own
  bool operator==(ScalarType other) const { return code == other.code; }
  bool operator!=(ScalarType other) const { return code != other.code; }
};

inline const ScalarType kFloat{aoti_torch_dtype_float32()}, kHalf{aoti_torch_dtype_float16()},
    kBFloat16{aoti_torch_dtype_bfloat16()}, kDouble{aoti_torch_dtype_float64()},
    kLong{aoti_torch_dtype_int64()}, kInt{aoti_torch_dtype_int32()}, kShort{aoti_torch_dtype_int16()},
    kChar{aoti_torch_dtype_int8()}, kByte{aoti_torch_dtype_uint8()}, kBool{aoti_torch_dtype_bool()};

inline std::ostream& operator<<(std::ostream& out, ScalarType type) {
  const std::pair<ScalarType, const char*> names[] = {
      {kFloat, "float32"}, {kHalf, "float16"}, {kBFloat16, "bfloat16"}, {kDouble, "float64"},
      {kLong, "int64"},    {kInt, "int32"},    {kShort, "int16"},       {kChar, "int8"},
      {kByte, "uint8"},    {kBool, "bool"}};
  for (const auto& [known, name] : names) {
    if (known == type) return out << name;
  }
  return out << "another dtype (" << type.code << ')';
}

template <class T>
ScalarType scalar_type_of();
template <>
inline ScalarType scalar_type_of<double>() {
  return kDouble;
}
template <>
inline ScalarType scalar_type_of<int64_t>() {
  return kLong;
}

struct Device {
  int32_t type, index;
  bool operator==(Device other) const { return type == other.type && index == other.index; }
};

inline const Device kCPU{aoti_torch_device_type_cpu(), -1};
inline const int32_t kCUDA = aoti_torch_device_type_cuda();

inline std::ostream& operator<<(std::ostream& out, Device device) {
  const bool known = device.type == kCPU.type || device.type == kCUDA;
  out << (known ? device.type == kCUDA ? "cuda" : "cpu" : "device of type ");
  if (!known) out << device.type;
  if (device.index >= 0) out << ':' << device.index;
  return out;
}

// Borrowed.
class Sizes {
 public:
  Sizes() = default;
  Sizes(const int64_t* data, int64_t count) : data_(data), count_(count) {}
  Sizes(std::initializer_list<int64_t> list) : Sizes(list.begin(), int64_t(list.size())) {}
  template <size_t N>
  Sizes(const int64_t (&array)[N]) : Sizes(array, int64_t(N)) {}

  int64_t count() const { return count_; }
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + count_; }
  int64_t operator[](int64_t i) const { return data_[i]; }

  bool operator==(Sizes other) const {
    bool same = count_ == other.count_;
    for (int64_t i = 0; same && i < count_; ++i) same = data_[i] == other.data_[i];
    return same;
  }

 private:
  const int64_t* data_ = nullptr;
  int64_t count_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (int64_t i = 0; i < sizes.count(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << ']';
}

class Tensor {
 public:
  Tensor() = default;
  // Delegates, so that what is owned is given back even where it cannot be described.
  explicit Tensor(AtenTensorHandle owned) : Tensor() {
    handle_ = owned;
    describe();
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor(const Tensor& other) : Tensor(other.new_handle()) {}
  Tensor& operator=(Tensor other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle handle() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  AtenTensorHandle new_handle() const {
    AtenTensorHandle same = nullptr;
    if (handle_) check_torch(aoti_torch_new_tensor_handle(handle_, &same));
    return same;
  }

  // Not None, as Python says.
  bool defined() const { return defined_; }
  int64_t dim() const { return sizes_.count(); }
  Sizes sizes() const { return sizes_; }
  Sizes strides() const { return strides_; }
  int64_t size(int64_t i) const { return sizes_[place(i)]; }
  int64_t stride(int64_t i) const { return strides_[place(i)]; }
  ScalarType scalar_type() const { return type_; }
  Device device() const { return device_; }
  int64_t element_size() const { return int64_t(aoti_torch_dtype_element_size(type_.code)); }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes_) count *= size;
    return count;
  }

  const void* const_data_ptr() const {
    const void* data = nullptr;
    check_torch(torch_get_const_data_ptr(handle_, &data));
    return data;
  }
  void* mutable_data_ptr() const {
    void* data = nullptr;
    check_torch(torch_get_mutable_data_ptr(handle_, &data));
    return data;
  }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }

 private:
  void describe() {
    if (!handle_) return;
    check_torch(aoti_torch_is_defined(handle_, &defined_));
    if (!defined_) return;
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    check_torch(aoti_torch_get_dim(handle_, &dim));
    check_torch(aoti_torch_get_sizes(handle_, &sizes));
    check_torch(aoti_torch_get_strides(handle_, &strides));
    check_torch(aoti_torch_get_dtype(handle_, &type_.code));
    check_torch(aoti_torch_get_device_type(handle_, &device_.type));
    check_torch(aoti_torch_get_device_index(handle_, &device_.index));
    sizes_ = {sizes, dim};
    strides_ = {strides, dim};
  }

  int64_t place(int64_t i) const {
    const int64_t wrapped = i < 0 ? i + dim() : i;
    if (wrapped < 0 || wrapped >= dim()) throw std::out_of_range(joined("dimension ", i, " of ", dim()));
    return wrapped;
  }

  void swap(Tensor& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(defined_, other.defined_);
    std::swap(sizes_, other.sizes_);
    std::swap(strides_, other.strides_);
    std::swap(type_, other.type_);
    std::swap(device_, other.device_);
  }

  AtenTensorHandle handle_ = nullptr;
  bool defined_ = false;
  Sizes sizes_, strides_;
  ScalarType type_{};
  Device device_{};
};

using TensorList = std::vector<Tensor>;

// Strides of a tensor that lies row by row.
inline std::vector<int64_t> row_major(Sizes sizes) {
  std::vector<int64_t> strides(sizes.count());
  int64_t stride = 1;
  for (int64_t i = sizes.count() - 1; i >= 0; stride *= std::max<int64_t>(sizes[i--], 1)) strides[i] = stride;
  return strides;
}

inline Tensor empty(Sizes sizes, ScalarType type, Device device = kCPU) {
  AtenTensorHandle made = nullptr;
  check_torch(aoti_torch_empty_strided(sizes.count(), sizes.begin(), row_major(sizes).data(), type.code,
                                       device.type, device.index, &made));
  return Tensor(made);
}

// As at::parallel_for.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& body) {
  const auto call = [](int64_t first, int64_t last, void* f) { (*static_cast<const F*>(f))(first, last); };
  check_torch(torch_parallel_for(begin, end, grain, call, const_cast<F*>(&body)));
}

inline int64_t get_num_threads() {
  uint32_t count = 1;
  check_torch(torch_get_num_threads(&count));
  return count;
}

}  // namespace bark_accel
