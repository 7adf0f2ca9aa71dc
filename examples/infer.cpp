// A sensor's mosaic in, the best five classes out: a student that isp_distill.export wrote, run by
// OpenVINO from C++. The camera is built into the file (export(..., isp=...), or isp-distill export
// --camera), so the mosaic is its only input, and there is no ISP.
//
//     infer student.onnx mosaic.raw [times]
//
// mosaic.raw holds the sensor's values, row after row, in the type and size of the file's input: uint16
// where nothing else was asked for. With `times` it is run so often, and the fastest run is told.
//
// OpenVINO's wheel brings headers and libraries:
//
//     OV=$(python -c "import openvino, os; print(os.path.dirname(openvino.__file__))")
//     g++ -std=c++17 -O2 -o infer examples/infer.cpp -I$OV/include -Wl,-rpath,$OV/libs $OV/libs/libopenvino.so.*
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <numeric>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// The file's bytes into a tensor, which must be as long.
void read_mosaic(const std::string& path, ov::Tensor& mosaic) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  const auto bytes = static_cast<size_t>(file.tellg());
  if (bytes != mosaic.get_byte_size()) {
    throw std::runtime_error(path + ": holds " + std::to_string(bytes) + " bytes, and " +
                             mosaic.get_shape().to_string() + " values of type " +
                             mosaic.get_element_type().get_type_name() + " take " +
                             std::to_string(mosaic.get_byte_size()));
  }
  file.seekg(0);
  if (!file.read(static_cast<char*>(mosaic.data()), static_cast<std::streamsize>(bytes))) {
    throw std::runtime_error(path + ": cannot be read");
  }
}

void print_best(const ov::Tensor& logits) {
  const float* values = logits.data<float>();
  const size_t classes = logits.get_size();
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), size_t{0});
  const size_t shown = std::min<size_t>(5, classes);
  std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                    [&](size_t a, size_t b) { return values[a] > values[b]; });
  double sum = 0;
  for (size_t i = 0; i < classes; ++i) sum += std::exp(double(values[i]) - values[order[0]]);
  for (size_t i = 0; i < shown; ++i) {
    const double share = std::exp(double(values[order[i]]) - values[order[0]]) / sum;
    std::cout << "class " << order[i] << "  " << share << "\n";
  }
}

int run(int count, char** arguments) {
  if (count < 3) throw std::runtime_error("infer STUDENT.onnx MOSAIC.raw [TIMES]");
  ov::Core core;
  auto model = core.read_model(arguments[1]);
  if (model->inputs().size() != 1) {
    throw std::runtime_error(std::string(arguments[1]) +
                             ": takes more than a mosaic: export it with one camera built in");
  }
  ov::PartialShape shape = model->input().get_partial_shape();
  shape[0] = 1;  // one frame at a time
  model->reshape(shape);
  // Without the precision, OpenVINO computes in bfloat16 where the processor has it.
  auto compiled =
      core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                         ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
  ov::InferRequest request = compiled.create_infer_request();
  ov::Tensor mosaic = request.get_input_tensor();
  read_mosaic(arguments[2], mosaic);
  request.infer();
  print_best(request.get_output_tensor());

  const int times = count > 3 ? std::atoi(arguments[3]) : 0;
  double fastest = INFINITY;
  for (int i = 0; i < times; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    request.infer();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    fastest = std::min(fastest, took.count());
  }
  if (times > 0) std::cout << fastest << " ms\n";
  return 0;
}

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << "infer: " << error.what() << "\n";
    return 2;
  }
}
